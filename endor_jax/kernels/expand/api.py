"""`expand`, the public operation: checks its input, asks `resolve`, calls one implementation."""

from __future__ import annotations

import jax
import jax.core
from jax import lax

from endor_jax import native
from endor_jax.errors import InvalidInputError
from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.backends import Implementation, resolve
from endor_jax.kernels.expand import cpu, xla

# Jitted, so that a call outside jit is one fused program too and not an array for every operation.
_EXPAND = {"xla": jax.jit(xla.expand), "cpu": jax.jit(cpu.expand)}


def expand(
    tensor: SparseTensor, *, after: jax.Array | None = None, implementation: Implementation | None = None
) -> jax.Array:
    """The dense array, shape `tensor.shape` and dtype `tensor.dtype`, bit for bit as it was encoded.

    after: inside jit, not before this float array has been computed (`kernels/order.py`): of several matrices
    that are each multiplied with what the one before gave, only one is dense at a time.

    Works outside and inside jit, vmap, grad (it has no gradient: its input is integers) and shard_map.
    Raises InvalidInputError for words that are not uint32 vectors, UnsupportedError for an implementation the
    device lacks.
    """
    for words in tensor.parts:
        if words.dtype != "uint32" or len(words.shape) != 1:
            raise InvalidInputError(
                "expand",
                got=f"a part of dtype {words.dtype} and shape {words.shape}",
                expected="uint32 vectors",
                fix="pass what encode or record[name] gave; use jax.vmap for a batch",
            )
    if implementation is None:
        return _expand_anywhere(tensor, after)
    return _EXPAND[resolve(implementation, platform_of(tensor), instruction_sets=native.instruction_sets())](
        tensor, after
    )


@jax.jit
def _expand_anywhere(tensor: SparseTensor, after: jax.Array | None) -> jax.Array:
    """The best implementation of whatever platform this is compiled for."""
    on_cpu = resolve(None, "cpu", instruction_sets=native.instruction_sets())
    return lax.platform_dependent(tensor, after, cpu=_EXPAND[on_cpu], default=xla.expand)


def expand_all(record: Record) -> dict[str, jax.Array]:
    """All tensors of a record, dense, by name."""
    return {name: expand(record[name]) for name in record}


def platform_of(tensor: SparseTensor) -> str:
    """The platform its words are on; under a trace, the one JAX compiles for by default."""
    first = tensor.parts[0]
    if isinstance(first, jax.Array) and not isinstance(first, jax.core.Tracer):
        return next(iter(first.devices())).platform
    return jax.default_backend()
