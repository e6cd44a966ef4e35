"""`expand`, the public operation, for tensors and trees: asks `resolve`, calls one implementation."""

from __future__ import annotations

from typing import Any, overload

import jax
from jax import lax

from endor_jax.format.record import Record
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.backends import Implementation, resolve
from endor_jax.kernels.check import check_parts
from endor_jax.kernels.expand import cpu, triton, xla
from endor_jax.kernels.place import cpu_place, default_place, place_of

# Jitted, so that a call outside jit is one fused program too and not an array for every operation.
_EXPAND = {"xla": jax.jit(xla.expand), "cpu": jax.jit(cpu.expand), "triton": jax.jit(triton.expand)}


@overload
def expand(
    tree: SparseTensor, *, after: jax.Array | None = None, implementation: Implementation | None = None
) -> jax.Array: ...


@overload
def expand(
    tree: Any, *, after: jax.Array | None = None, implementation: Implementation | None = None
) -> Any: ...


def expand(tree: Any, *, after: jax.Array | None = None, implementation: Implementation | None = None) -> Any:
    """The dense array of a SparseTensor: its shape and dtype, bit for bit as it was encoded.

    tree: one, or any pytree; a tree comes back with every SparseTensor in it expanded, a Record as a dict of
    its tensors by name, and all other leaves as they are.
    after: inside jit, not before this float array has been computed (`kernels/order.py`): of several matrices
    that are each multiplied with what the one before gave, only one is dense at a time.

    Works outside and inside jit, vmap, grad (it has no gradient: its input is integers), checkpoint, scan and
    shard_map. Raises InvalidInputError for words that are not uint32 vectors or too few, UnsupportedError for
    an implementation the device lacks.
    """

    def dense(leaf: Any) -> Any:
        if isinstance(leaf, Record):
            return {name: dense(leaf[name]) for name in leaf}
        return _expand(leaf, after, implementation) if isinstance(leaf, SparseTensor) else leaf

    return jax.tree.map(dense, tree, is_leaf=lambda node: isinstance(node, SparseTensor | Record))


def _expand(
    tensor: SparseTensor, after: jax.Array | None, implementation: Implementation | None
) -> jax.Array:
    check_parts("expand", tensor)
    if implementation is None:
        return _expand_anywhere(tensor, after)
    return _EXPAND[resolve(implementation, place_of(tensor))](tensor, after)


@jax.jit
def _expand_anywhere(tensor: SparseTensor, after: jax.Array | None) -> jax.Array:
    """The best implementation of whatever platform this is compiled for.

    JAX traces every branch, and a kernel takes a while: Triton's is one where there is a device for it.
    """
    branches = {"cpu": _EXPAND[resolve(None, cpu_place())]}
    if resolve(None, default_place()) == "triton":
        branches["cuda"] = _EXPAND["triton"]
    return lax.platform_dependent(tensor, after, **branches, default=_EXPAND["xla"])


def expand_all(record: Record) -> dict[str, jax.Array]:
    """All tensors of a record, dense, by name."""
    return expand(record)
