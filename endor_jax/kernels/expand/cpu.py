"""Expand on CPU in compiled code: a custom call of the extension, at the speed of memory.

Written in C++ for each instruction set (kernels/native/, docs/kernels.md); bit for bit equal to `xla.expand`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped, UInt32

from endor_jax.arrays import dtype_from_name
from endor_jax.format.layout import DenseLayout
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.custom_call import attributes, call, mapped
from endor_jax.kernels.expand import xla
from endor_jax.kernels.order import first_bits


def expand(
    tensor: SparseTensor,
    earlier: jax.Array | None = None,
    *,
    widened: bool = False,
    instruction_set: str | None = None,
) -> Shaped[Array, " *shape"]:
    """The dense array. See `endor_jax.kernels.expand.api.expand`.

    widened: as float32, exactly, whatever the tensor's own dtype (of one stored as its own bytes, never).
    instruction_set: one of
    `native.instruction_sets()`, the best by default. Raises UnsupportedError where the extension was not
    built, or for an instruction set the processor lacks.
    """
    layout = tensor.layout
    if isinstance(layout, DenseLayout):  # its own bytes: nothing to expand
        return xla.expand(tensor, earlier)
    dtype = jnp.dtype("float32") if widened else dtype_from_name(layout.dtype)
    parts = len(tensor.parts)
    result = jax.ShapeDtypeStruct(layout.shape, dtype)
    described = attributes(layout, parts=parts, instruction_set=instruction_set)

    @jax.custom_batching.custom_vmap
    def expanded(*arrays: UInt32[Array, " ..."]) -> Shaped[Array, " *shape"]:
        # A call waits for all its arguments, also for one that it does not look at.
        return call("endor_expand", result, *arrays, **described)

    @expanded.def_vmap
    def _(
        size: int, batched: Sequence[bool], *arrays: UInt32[Array, " ..."]
    ) -> tuple[Shaped[Array, " ..."], bool]:
        del size
        if any(batched[:parts]):
            # As integers: a loop carries bfloat16 by way of float32, which changes NaNs (jax 0.10.2).
            unsigned = jnp.dtype(f"uint{8 * dtype.itemsize}")
            bits = mapped(lambda *one: lax.bitcast_convert_type(expanded(*one), unsigned), batched, *arrays)
            return lax.bitcast_convert_type(bits, dtype), True
        return expanded(*arrays[:parts], *(bits[0] for bits in arrays[parts:])), False

    return expanded(*(jnp.asarray(words) for words in tensor.parts), *first_bits(earlier))
