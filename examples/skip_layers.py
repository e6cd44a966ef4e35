"""A research loop that skips layers by input: the loop is yours, and each layer is called, or left out.

`run.layers()` gives the layers of a pass one after the other. Here a gate looks at the activations: a layer
that is left out is neither expanded nor computed. It is read all the same, for reading goes on ahead of the
loop. A loop may also end early: the rest of its pass goes by when the next one begins.
"""

import functools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import endor_jax as endor

WIDTH, LAYERS = 512, 12


def make_layer(key: jax.Array) -> dict[str, jax.Array]:
    """A residual MLP, half of it zeros."""
    kernels = jax.random.normal(key, (2, WIDTH, 2 * WIDTH)) / WIDTH**0.5
    kernels = jnp.where(jnp.abs(kernels) > jnp.median(jnp.abs(kernels)), kernels, 0)
    return {"up": kernels[0], "down": kernels[1].T}


def layer(params: dict[str, jax.Array], x: jax.Array, state: None) -> tuple[jax.Array, None]:
    """What `endor.stream` expands a record for."""
    return x + 0.3 * jnp.tanh(x @ params["up"]) @ params["down"], state


@jax.jit
def opens(gate: jax.Array, x: jax.Array) -> jax.Array:
    """Whether a layer's gate lets x through. Gates are small: they stay in memory."""
    return (x @ gate).mean() > -0.3


@jax.jit
def settled(before: jax.Array, x: jax.Array) -> jax.Array:
    """Whether a layer has hardly turned x."""
    return (before * x).sum() > 0.977 * jnp.linalg.norm(before) * jnp.linalg.norm(x)


def gated(steps: Iterable[Callable[..., tuple[jax.Array, None]]], x: jax.Array) -> tuple[jax.Array, str]:
    """The last x, and what became of each layer: "#" computed, "-" left out."""
    trace = ""
    for gate, step in zip(gates, steps, strict=False):
        if not opens(gate, x):
            trace += "-"
            continue
        before, (x, _) = x, step(x, None)
        trace += "#"
        if settled(before, x):
            break
    return x, trace


layers = [make_layer(jax.random.key(i)) for i in range(LAYERS)]
gates = jax.random.normal(jax.random.key(LAYERS), (LAYERS, WIDTH)) / WIDTH**0.5
inputs = jax.random.normal(jax.random.key(LAYERS + 1), (4, 1, WIDTH))

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "layers.endor"
    endor.save(path, layers)
    with endor.stream(layer, path, device_memory="8MiB", host_memory="12MiB") as run:
        print(run.plan)
        streamed = [gated(run.layers(), x) for x in inputs]

jitted = jax.jit(layer)
resident = [gated([functools.partial(jitted, params) for params in layers], x) for x in inputs]

print("layers called (#) and left out (-):", *(trace for _, trace in streamed))
same = [np.array_equal(x, expected) for (x, _), (expected, _) in zip(streamed, resident, strict=True)]
print("same bits as in memory:", all(same) and [t for _, t in streamed] == [t for _, t in resident])
