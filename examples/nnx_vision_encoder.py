"""An NNX vision encoder larger than its budget: a patch convolution in memory, its blocks from disk.

`save_nnx` writes a record per block, kernels of rank 2 and 3 among them, and the rest of the model. For
`stream_nnx` only the model's structure is needed (`nnx.eval_shape`): no dense block is ever in memory twice.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from endor_jax.adapters.nnx import save_nnx, stream_nnx

WIDTH, HEADS, BLOCKS, PATCH, SIZE = 256, 8, 6, 8, 64


class Block(nnx.Module):
    """Attention and an MLP, both residual, with dropout while it is trained."""

    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norms[0](x))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norms[1](x)))))


class VisionEncoder(nnx.Module):
    """Patches, blocks, and the mean of what they give, as one writes it in NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.patches = nnx.Conv(3, WIDTH, (PATCH, PATCH), strides=(PATCH, PATCH), rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.normal((1, (SIZE // PATCH) ** 2, WIDTH)))
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.patches(images)
        x = x.reshape(x.shape[0], -1, WIDTH) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=1))


def prune(leaf: jax.Array) -> jax.Array:
    """The smaller half of every kernel becomes zero."""
    return jnp.where(jnp.abs(leaf) > jnp.median(jnp.abs(leaf)), leaf, 0) if leaf.ndim > 1 else leaf


model = VisionEncoder(nnx.Rngs(0))
model.eval()
nnx.update(model, jax.tree.map(prune, nnx.state(model, nnx.Param)))
images = jax.random.normal(jax.random.key(1), (4, SIZE, SIZE, 3))

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "encoder.endor"
    save_nnx(path, model, blocks="blocks.*")
    structure = nnx.eval_shape(lambda: VisionEncoder(nnx.Rngs(0)))
    structure.eval()
    with stream_nnx(structure, path, device_memory="6MiB", host_memory="6MiB") as run:
        streamed = run.model(images)
        print(run.plan)
        read_bytes = run.bytes_read
    with stream_nnx(structure, path, device_memory="64MiB", host_memory="64MiB") as run:
        resident = run.model(images)
        assert run.plan.count("device") == BLOCKS

dense = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
print(f"{dense / 2**20:.0f} MiB of weights, {read_bytes / 2**20:.0f} MiB read from disk")
print("same bits as with all blocks on the device:", np.array_equal(streamed, resident))
plain = nnx.jit(VisionEncoder.__call__)(model, images)  # one program, in which XLA may round otherwise
print("close to model(images):", bool(jnp.allclose(streamed, plain, atol=1e-3)))
