"""Writes tests/format/golden/*.txt (python tests/format/make_golden.py): only when the format itself changes.

A golden file is an array and the part it is encoded to. If the encoder's bytes change and the format version
does not, the encoder is wrong, not the file: `--force` is needed to replace one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from endor_jax.arrays import dtype_from_name
from endor_jax.format.encode import encode_array
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

    def text(self) -> str:
        shape = " ".join(str(size) for size in self.shape)
        return (
            f"# {self.dtype} {shape} {self.codec}\n"
            f"# array\n{hextext.dump(self.array)}# part\n{hextext.dump(self.part)}"
        )


def read_golden(path: Path) -> Golden:
    header, _, rest = path.read_text().partition("# array\n")
    dtype, *shape, codec = header.removeprefix("# ").split()
    array, _, part = rest.partition("# part\n")
    return Golden(dtype, tuple(map(int, shape)), codec, hextext.parse(array), hextext.parse(part))


def example(dtype: str, shape: tuple[int, ...], codec: str, seed: int) -> Golden:
    """Pruned weights with a few special values among them."""
    random = np.random.default_rng(seed)
    array = (random.standard_normal(shape) * 0.02).astype(dtype_from_name(dtype))
    array[random.random(shape) < 0.4] = 0
    specials = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-5, 3e4], np.float32).astype(array.dtype)
    where = random.choice(array.size, specials.size, replace=False)
    array.reshape(-1)[where] = specials
    (part,) = encode_array(array, codec).parts
    return Golden(dtype, shape, codec, array.tobytes(), np.asarray(part).tobytes())


EXAMPLES = {
    "bfloat16-raw": ("bfloat16", (3, 40), "raw"),
    "bfloat16-packed2": ("bfloat16", (5, 33), "packed:2"),
    "bfloat16-packed3-two-segments": ("bfloat16", (1, 1030), "packed:3"),
    "bfloat16-dense-packed3": ("bfloat16", (2, 3, 17), "dense-packed:3"),
    "float16-packed4": ("float16", (4, 40), "packed:4"),
    "float16-dense-raw": ("float16", (7, 5), "dense-raw"),
    "float32-packed1": ("float32", (3, 32), "packed:1"),
    "float32-raw": ("float32", (2, 2, 2, 9), "raw"),
}

if __name__ == "__main__":
    for seed, (name, (dtype, shape, codec)) in enumerate(EXAMPLES.items()):
        path = GOLDEN / f"{name}.txt"
        if path.exists() and "--force" not in sys.argv:
            sys.exit(f"{path} exists; --force replaces it")
        path.write_text(example(dtype, shape, codec, seed).text())
