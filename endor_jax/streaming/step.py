"""The jitted step: a record and a layer function to the next activations; one compilation per signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

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
