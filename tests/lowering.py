"""Lowering a function for CUDA on a machine that has none."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import sharding


def cuda_lowered(function: Callable[..., Any], *arguments: Any, **static: Any) -> Any:
    """The lowered function, or what `jax.jit` made of it."""
    # jax >= 0.11 wants to know the device that it lowers for.
    context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if jax.__version_info__ >= (0, 11):
        device = sharding.AbstractDevice("NVIDIA H200", 1, "cuda")
        context = sharding.use_abstract_mesh(sharding.AbstractMesh((), (), abstract_device=device))
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    with context:
        return jitted.trace(*arguments, **static).lower(lowering_platforms=("cuda",))


def cuda_text(function: Callable[..., Any], *arguments: Any, **static: Any) -> str:
    """The lowered program as text."""
    return cuda_lowered(function, *arguments, **static).as_text()


FREE = {"func.call", "stablehlo.case", "stablehlo.reshape", "stablehlo.bitcast_convert"}
"""Operations that only give the same memory another name or type (`case`: the choice of a platform, made)."""


def large_operations(lowered: Any, size: int) -> list[str]:
    """The operations, but for FREE ones, with a result of at least so many elements; in order."""
    found = []

    def walk(operation: Any) -> None:
        for region in operation.regions:
            for block in region:
                for each in block:
                    walk(each.operation)
        shapes = [result.type.shape for result in operation.results if hasattr(result.type, "shape")]
        if operation.name not in FREE and any(math.prod(shape) >= size for shape in shapes):
            found.append(operation.name)

    walk(lowered.compiler_ir("stablehlo").operation)
    return found


def abstract(tree: Any) -> Any:
    """Shapes and dtypes in place of arrays."""
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), tree)
