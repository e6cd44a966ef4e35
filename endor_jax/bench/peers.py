"""What ours is measured against: NumPy, XLA's dense products, and torch and transformers where installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

from endor_jax.arrays import bits_of
from endor_jax.bench.greedy import greedy
from endor_jax.errors import MissingDependencyError
from endor_jax.format import bitmap
from endor_jax.format.decode import decode
from endor_jax.format.layout import FieldLayout
from endor_jax.format.tensor import SparseTensor


def installed(name: str) -> bool:
    """Whether an optional package is there."""
    return importlib.util.find_spec(name) is not None


def need(*names: str) -> None:
    """Raises MissingDependencyError, naming what is not installed."""
    if missing := [name for name in names if not installed(name)]:
        raise MissingDependencyError(
            "bench",
            got=f"no {' and no '.join(missing)}",
            expected=" and ".join(names),
            fix="pip install 'endor_jax[reference]'",
        )


def numpy_expand(tensor: SparseTensor, out: np.ndarray) -> None:
    """The dense array into `out`, as NumPy does it best: elements of their own width go where bits are set.

    Fields of other widths need shifts, masks and gathers: the decoder that is our oracle.
    """
    layout = tensor.layout
    if not (isinstance(layout, FieldLayout) and layout.bitmap and layout.codec.kind == "raw"):
        out[:] = decode(tensor)
        return
    (words,) = (np.asarray(part) for part in tensor.parts)
    packed = words[layout.bitmap.start : layout.bitmap.stop].reshape(layout.rows, -1)
    stored = bitmap.unpack(packed, layout.columns)
    first = int(words[layout.offsets.start]) // 32
    values = words[first:].view(layout.number.unsigned)
    bits = bits_of(out)
    bits[:] = 0
    bits[stored] = values[: np.count_nonzero(stored)]


def xla_product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x @ weight.T by XLA, in the dtype of both.

    Said as a contraction of the last axes: with one row of x, `x @ weight.T` takes 20 times as long on CPU
    (jax 0.10.2, float32).
    """
    return lax.dot_general(x, weight, (((1,), (1,)), ((), ())))


def torch_product(x: jax.Array, weights: Sequence[jax.Array], *, threads: int) -> Callable[[int], object]:
    """The same product by torch on the same memory: called with the number of a matrix."""
    need("torch")
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    vectors = torch.from_dlpack(x)
    matrices = [torch.from_dlpack(weight) for weight in weights]

    def call(index: int) -> object:
        with torch.inference_mode():
            return torch.nn.functional.linear(vectors, matrices[index])

    return call


def transformers_tokens(directory: Path, dtype: str, *, threads: int) -> Callable[..., Iterator[int]]:
    """A model in torch transformers as a function: (prompt ids, tokens) -> greedy tokens as they come."""
    need("torch", "transformers")
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    return greedy(model)
