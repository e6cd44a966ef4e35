"""XLA's custom calls of the compiled extension: registered once, and the attributes they take."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from endor_jax import native
from endor_jax.errors import UnsupportedError
from endor_jax.format.layout import FieldLayout, matrix_shape
from endor_jax.format.tensor import Words


@functools.cache
def target(name: str) -> str:
    """The custom call `name` of the extension ("endor_expand", "endor_linear"), registered with XLA for CPU.

    Raises UnsupportedError if the extension was not built.
    """
    handler: ctypes._NamedFuncPointer = getattr(native.library(), f"{name}_handler")
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
    return name


def call(
    name: str, result: jax.ShapeDtypeStruct, *arrays: jax.Array, **described: np.int64 | str
) -> jax.Array:
    """The custom call `name`. Raises UnsupportedError if the extension was not built."""
    return varying_as(jax.ffi.ffi_call(target(name), result)(*arrays, **described), *arrays)


def varying_as(array: jax.Array, *others: Words) -> jax.Array:
    """The same array; inside shard_map one that varies over every mesh axis that one of the others varies
    over, as the result of any JAX operation on them does."""
    axes = frozenset().union(*(jax.typeof(other).manual_axis_type.varying for other in others))
    missing = tuple(sorted(axes - jax.typeof(array).manual_axis_type.varying))
    return jax.lax.pcast(array, missing, to="varying") if missing else array


def attributes(layout: FieldLayout, *, parts: int, instruction_set: str | None) -> dict[str, np.int64 | str]:
    """What `Attributes` in kernels/native/ffi_handlers.cc holds.

    instruction_set: one of `native.instruction_sets()`, None for the best.
    Raises UnsupportedError for one that this machine lacks.
    """
    if instruction_set is not None and instruction_set not in native.instruction_sets():
        raise UnsupportedError(
            "instruction set",
            got=repr(instruction_set),
            expected=" or ".join(native.instruction_sets()),
            fix="leave it out to take the best one",
        )
    numbers = {
        "number": native.NUMBERS[layout.dtype],
        "field_bits": layout.field_bits,
        "rows": layout.rows,
        "columns": layout.columns,
        "header": layout.header,
        "bitmap": -1 if layout.bitmap is None else layout.bitmap.start,
        "offsets": layout.offsets.start,
        "bases": -1 if layout.bases is None else layout.bases.start,
        "scales": -1 if layout.scales is None else layout.scales.start,
        "escape_capacity": layout.escape_capacity,
        "matrix_rows": matrix_shape(layout.shape)[0],
        "parts": parts,
    }
    return {name: np.int64(value) for name, value in numbers.items()} | {
        "instruction_set": instruction_set or ""
    }


def mapped(call: Callable[..., jax.Array], batched: Sequence[bool], *arrays: jax.Array) -> jax.Array:
    """`call` for each element of a batch, one after another: words of several records."""

    def one(batch: Sequence[jax.Array]) -> jax.Array:
        rest = iter(batch)
        return call(*(next(rest) if mine else array for array, mine in zip(arrays, batched, strict=True)))

    return jax.lax.map(one, [array for array, mine in zip(arrays, batched, strict=True) if mine])
