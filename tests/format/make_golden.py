"""Writes tests/format/golden/*.txt (python tests/format/make_golden.py): only when the format itself changes.

A golden file is an array, the part it is encoded to and, under a codec that loses something, the array that
is decoded. If the encoder's bytes change and the format version does not, the encoder is wrong, not the file:
`--force` is needed to replace one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from endor_jax.arrays import dtype_from_name
from endor_jax.format.decode import decode
from endor_jax.format.encode import encode_array
from endor_jax.format.values import parse_codec
from tests.format import hextext

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """A tensor with the bytes of its part."""

    dtype: str
    shape: tuple[int, ...]
    codec: str
    array: bytes
    part: bytes
    decoded: bytes

    def text(self) -> str:
        shape = " ".join(str(size) for size in self.shape)
        return (
            f"# {self.dtype} {shape} {self.codec}\n"
            f"# array\n{hextext.dump(self.array)}# part\n{hextext.dump(self.part)}"
            + ("" if self.decoded == self.array else f"# decoded\n{hextext.dump(self.decoded)}")
        )


def read_golden(path: Path) -> Golden:
    header, _, rest = path.read_text().partition("# array\n")
    dtype, *shape, codec = header.removeprefix("# ").split()
    array, _, rest = rest.partition("# part\n")
    part, _, decoded = rest.partition("# decoded\n")
    texts = (array, part, decoded or array)
    return Golden(dtype, tuple(map(int, shape)), codec, *(hextext.parse(text) for text in texts))


def example(dtype: str, shape: tuple[int, ...], codec: str, seed: int) -> Golden:
    """Pruned weights with a few special values among them, for integers without NaN and the like."""
    random = np.random.default_rng(seed)
    array = (random.standard_normal(shape) * 0.02).astype(dtype_from_name(dtype))
    array[random.random(shape) < 0.4] = 0
    specials = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-5, 3e4], np.float32).astype(array.dtype)
    where = random.choice(array.size, specials.size, replace=False)
    if not parse_codec(codec).quantised:
        array.reshape(-1)[where] = specials
    tensor = encode_array(array, codec)
    return Golden(
        dtype,
        shape,
        codec,
        array.tobytes(),
        np.asarray(tensor.parts[0]).tobytes(),
        decode(tensor).tobytes(),
    )


EXAMPLES = {
    "bfloat16-raw": ("bfloat16", (3, 40), "raw"),
    "bfloat16-packed2": ("bfloat16", (5, 33), "packed:2"),
    "bfloat16-packed3-two-segments": ("bfloat16", (1, 1030), "packed:3"),
    "bfloat16-dense-packed3": ("bfloat16", (2, 3, 17), "dense-packed:3"),
    "float16-packed4": ("float16", (4, 40), "packed:4"),
    "float16-dense-raw": ("float16", (7, 5), "dense-raw"),
    "float32-packed1": ("float32", (3, 32), "packed:1"),
    "float32-raw": ("float32", (2, 2, 2, 9), "raw"),
    "bfloat16-int4": ("bfloat16", (2, 150), "int4"),
    "float16-int8": ("float16", (3, 2, 33), "int8"),
    "float32-dense-int4": ("float32", (2, 135), "dense-int4"),
}

if __name__ == "__main__":
    for seed, (name, (dtype, shape, codec)) in enumerate(EXAMPLES.items()):
        path = GOLDEN / f"{name}.txt"
        if path.exists() and "--force" not in sys.argv:
            print(f"{path} exists; --force replaces it")
            continue
        path.write_text(example(dtype, shape, codec, seed).text())
