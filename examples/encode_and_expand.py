"""One pruned matrix: compressed without loss, expanded on the device, multiplied, differentiated."""

import jax
import jax.numpy as jnp
import numpy as np

import endor_jax as endor

weight = jax.random.normal(jax.random.key(0), (1024, 4096), jnp.bfloat16)
weight = jnp.where(jnp.abs(weight) > 0.6745, weight, 0)  # magnitude pruning: the smaller half becomes zero
x = jax.random.normal(jax.random.key(1), (8, 4096), jnp.bfloat16)

compressed = endor.encode(weight)  # on the host: a bitmap of what is left, and its values packed
print(compressed)

expanded = jax.jit(endor.expand)(compressed)  # on the device, inside or outside jit
same = np.asarray(expanded).tobytes() == np.asarray(weight).tobytes()
print("expands to the same bits:", same)

y = jax.jit(endor.linear)(x, compressed)  # x @ weight.T, summed in float32
exact = x.astype(jnp.float32) @ weight.astype(jnp.float32).T
print("product agrees:", bool(jnp.allclose(y, exact, rtol=1e-2, atol=1e-2)))

slope = jax.grad(lambda x: endor.linear(x, compressed, output_dtype=jnp.dtype("float32")).sum())(x)
print(
    "gradient agrees:",
    bool(jnp.allclose(slope, weight.astype(jnp.float32).sum(axis=0), rtol=1e-2, atol=1e-2)),
)

stored = sum(part.nbytes for part in compressed.parts)
print(f"{stored / weight.size:.2f} bytes per weight instead of {weight.dtype.itemsize}")
