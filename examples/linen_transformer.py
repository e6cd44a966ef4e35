"""A Linen transformer larger than its budget: the model's code stays as it is, its blocks come from disk.

`save_linen` writes a record per block, and the rest of the model. `stream_linen` gives `apply`, in which the
call of a block is a jitted step on the next record. Whatever the budget, the bits are the same.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from endor_jax.adapters.linen import save_linen, stream_linen

WIDTH, HEADS, BLOCKS, VOCABULARY = 256, 8, 6, 512


class Block(nn.Module):
    """Attention and an MLP, both residual."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        attended = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS)(attended, attended, mask=mask)
        hidden = nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x)))
        return x + nn.Dense(WIDTH)(hidden)


class Transformer(nn.Module):
    """A small language model, as one writes it in Linen."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embedding = nn.Embed(VOCABULARY, WIDTH)
        x = embedding(tokens)
        mask = nn.make_causal_mask(tokens)
        for i in range(BLOCKS):
            x = Block(name=f"block_{i}")(x, mask)
        return embedding.attend(nn.LayerNorm()(x))


def prune(leaf: jax.Array) -> jax.Array:
    """The smaller half of every kernel becomes zero."""
    return jnp.where(jnp.abs(leaf) > jnp.median(jnp.abs(leaf)), leaf, 0) if leaf.ndim > 1 else leaf


model = Transformer()
tokens = jax.random.randint(jax.random.key(1), (2, 32), 0, VOCABULARY)
variables = jax.tree.map(prune, jax.jit(model.init)(jax.random.key(0), tokens))

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "transformer.endor"
    save_linen(path, variables, blocks="block_*")
    with stream_linen(model, path, device_memory="6MiB", host_memory="6MiB") as run:
        streamed = run.apply(run.variables, tokens)
        print(run.plan)
        read_bytes = run.bytes_read
    with stream_linen(model, path, device_memory="64MiB", host_memory="64MiB") as run:
        resident = run.apply(run.variables, tokens)
        assert run.plan.count("device") == BLOCKS

dense = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
print(f"{dense / 2**20:.0f} MiB of weights, {read_bytes / 2**20:.0f} MiB read from disk")
print("same bits as with all blocks on the device:", np.array_equal(streamed, resident))
plain = jax.jit(model.apply)(variables, tokens)  # one program, in which XLA rounds otherwise here and there
assert isinstance(plain, jax.Array)
print("close to model.apply:", bool(jnp.allclose(streamed, plain, atol=1e-3)))
