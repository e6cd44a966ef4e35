"""Expand by a kernel that writes the rows of one part: all parts in turn, escapes, batches.

The parts of a tensor write into one array, which goes from kernel to kernel in place. XLA scatters the
escapes over it, in place too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped, UInt, UInt32

from endor_jax.arrays import dtype_from_name
from endor_jax.format.layout import FieldLayout, matrix_shape
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.custom_call import mapped, varying_as
from endor_jax.kernels.expand import xla
from endor_jax.kernels.order import first_bits


@dataclass(frozen=True)
class PartRows:
    """Which rows of a matrix a part holds: `count` from row `first` on. The layout says the rest."""

    layout: FieldLayout
    first: int
    count: int


@runtime_checkable
class ExpandPart(Protocol):
    """A kernel. Gives `before`, the bits of the whole matrix in row-major order, with the rows of one part in
    place of what was there (None: what is not of this part is undefined). waited: known before it runs, not
    looked at. result: what it gives; inside shard_map all arguments vary over the same mesh axes as that."""

    def __call__(
        self,
        words: UInt32[Array, " words"],
        before: UInt[Array, " elements"] | None,
        *,
        waited: Sequence[UInt32[Array, 1]],
        part: PartRows,
        result: jax.ShapeDtypeStruct,
    ) -> UInt[Array, " elements"]: ...


def expand_by_part(
    tensor: SparseTensor, earlier: jax.Array | None, expand_part: ExpandPart
) -> Shaped[Array, " *shape"]:
    """The dense array of a tensor that is stored as fields. See `endor_jax.kernels.expand.api.expand`."""
    layout = tensor.layout
    assert isinstance(layout, FieldLayout)
    parts = len(tensor.parts)

    @jax.custom_batching.custom_vmap
    def expanded(*arrays: UInt32[Array, " ..."]) -> UInt[Array, " elements"]:
        return _expand_parts(layout, arrays[:parts], arrays[parts:], expand_part)

    @expanded.def_vmap
    def _(
        size: int, batched: Sequence[bool], *arrays: UInt32[Array, " ..."]
    ) -> tuple[UInt[Array, " ..."], bool]:
        del size
        if any(batched[:parts]):
            return mapped(expanded, batched, *arrays), True
        return expanded(*arrays[:parts], *(bits[0] for bits in arrays[parts:])), False

    bits = expanded(*(jnp.asarray(words) for words in tensor.parts), *first_bits(earlier))
    return lax.bitcast_convert_type(bits.reshape(layout.shape), dtype_from_name(layout.dtype))


def _expand_parts(
    layout: FieldLayout, parts: Sequence[jax.Array], waited: Sequence[jax.Array], expand_part: ExpandPart
) -> UInt[Array, " elements"]:
    """All rows, as bits in row-major order."""
    rows, columns = matrix_shape(layout.shape)
    waited = [bits.reshape(1) for bits in waited]
    bits = None
    for number, words in enumerate(parts):
        first = number * layout.rows
        if first < rows:
            part = PartRows(layout, first, min(layout.rows, rows - first))
            bits = _expand_part(words, bits, waited=waited, part=part, expand_part=expand_part)
            if layout.escape_capacity:
                bits = xla.scatter_escapes(bits, words, layout, first=first * columns)
    assert bits is not None  # a matrix has rows
    return bits


def _expand_part(
    words: UInt32[Array, " words"],
    before: UInt[Array, " elements"] | None,
    *,
    waited: Sequence[UInt32[Array, 1]],
    part: PartRows,
    expand_part: ExpandPart,
) -> UInt[Array, " elements"]:
    """With arguments that vary alike: Pallas does not make them so."""
    others = [*waited, *([] if before is None else [before])]
    words, *others = (varying_as(array, words, *others) for array in (words, *others))
    result = jax.ShapeDtypeStruct(
        (matrix_shape(part.layout.shape)[0] * part.layout.columns,),
        part.layout.number.unsigned,
        manual_axis_type=jax.typeof(words).manual_axis_type,
    )
    waited, rest = others[: len(waited)], others[len(waited) :]
    return expand_part(words, *(rest or [None]), waited=waited, part=part, result=result)
