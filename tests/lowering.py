"""Lowering a function for CUDA on a machine that has none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax import sharding


def cuda_text(function: Callable[..., Any], *arguments: Any, **static: Any) -> str:
    """The lowered program of a function or of what `jax.jit` made of it."""
    # jax >= 0.11 wants to know the device that it lowers for.
    context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if jax.__version_info__ >= (0, 11):
        device = sharding.AbstractDevice("NVIDIA H200", 1, "cuda")
        context = sharding.use_abstract_mesh(sharding.AbstractMesh((), (), abstract_device=device))
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    with context:
        return jitted.trace(*arguments, **static).lower(lowering_platforms=("cuda",)).as_text()


def abstract(tree: Any) -> Any:
    """Shapes and dtypes in place of arrays."""
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), tree)
