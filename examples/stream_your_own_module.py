"""Your own Flax module, deeper than the device: its layers streamed from disk through a jitted step.

Each layer is an `nnx.State` on disk, pruned and compressed without loss. `stream` moves one at a time to the
device, expands it inside jit and applies it. The result has the very bits of the module that is in memory.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import endor_jax as endor

WIDTH, LAYERS = 512, 8


class Block(nnx.Module):
    """A residual MLP block."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


def prune(leaf: jax.Array) -> jax.Array:
    """The smaller half of every matrix becomes zero."""
    return jnp.where(jnp.abs(leaf) > jnp.median(jnp.abs(leaf)), leaf, 0) if leaf.ndim == 2 else leaf


# What all blocks share is static; what each has of its own is a tree of arrays.
graph, like = nnx.split(nnx.eval_shape(lambda: Block(nnx.Rngs(0))))


def layer(params: nnx.State, x: jax.Array, state: None) -> tuple[jax.Array, None]:
    """One block as a pure function: dense parameters come in, expanded; nothing is kept between calls."""
    return nnx.merge(graph, params)(x), state


blocks = [jax.tree.map(prune, nnx.state(Block(nnx.Rngs(seed)))) for seed in range(LAYERS)]
x = jax.random.normal(jax.random.key(0), (16, WIDTH))

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "blocks.endor"
    endor.save(path, blocks)
    with endor.stream(layer, path, device_memory="20MiB", host_memory="16MiB", like=like) as run:
        streamed, _ = run(x)
        print(run.plan)

resident = x
step = jax.jit(layer)
for params in blocks:
    resident, _ = step(params, resident, None)

dense = sum(leaf.nbytes for leaf in jax.tree.leaves(blocks))
print(f"{dense / 2**20:.0f} MiB of weights, {run.bytes_read / 2**20:.0f} MiB read from disk")
print("same bits as in memory:", np.asarray(streamed).tobytes() == np.asarray(resident).tobytes())
