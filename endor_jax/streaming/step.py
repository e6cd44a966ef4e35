"""The jitted step: a record and a layer function to the next activations; one compilation per signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.core

from endor_jax.errors import UnsupportedError
from endor_jax.format.record import Record
from endor_jax.kernels.expand import expand_all

LayerFunction = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(params, x, state) -> (x, state); params is a dense parameter tree, x and state any pytrees."""


def make_step(layer: LayerFunction, *, build: Callable[[dict[str, jax.Array]], Any]) -> Callable[..., Any]:
    """A jitted (record, x, state) -> (x, state) that expands the record and applies the layer.

    build: turns the dense arrays of a record, by name, into the tree that the layer takes. The layout is a
    static part of the record, so each signature (and size class) compiles once, whatever layer it is.
    """

    def step(record: Record, x: Any, state: Any) -> tuple[Any, Any]:
        return layer(build(expand_all(record)), x, state)

    return jax.jit(step)


def refuse_traced(tree: Any, name: str) -> None:
    """Raises UnsupportedError if a leaf is traced: a stream that runs inside a JAX transformation.

    Nothing would be computed before the transformation is, and nobody waits for that: by then the memory of
    the record has been written again.
    """
    if is_traced(tree):
        raise traced_error(name)


def is_traced(tree: Any) -> bool:
    """Whether a leaf stands for a value that a JAX transformation has not computed yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def traced_error(name: str) -> UnsupportedError:
    """For a layer whose call is traced: reading ahead cannot be part of a compiled program."""
    return UnsupportedError(
        f"streamed layer {name}",
        got="a call inside a JAX transformation (jit, grad, vmap, scan, remat)",
        expected="one outside: its weights are read while the model runs",
        fix="call the model outside jit; each layer is compiled by itself. To compile your own loop, or to "
        "differentiate, see docs/embedding.md",
    )
