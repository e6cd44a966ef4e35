"""`linear`, the public product with a compressed matrix, differentiable with respect to x."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from endor_jax.errors import InvalidInputError
from endor_jax.format.layout import DenseLayout
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.backends import Implementation, resolve
from endor_jax.kernels.check import check_parts
from endor_jax.kernels.custom_call import varying_as
from endor_jax.kernels.expand import expand
from endor_jax.kernels.expand.cpu import expand as cpu_expand
from endor_jax.kernels.linear import cpu, triton
from endor_jax.kernels.linear.dense import dense
from endor_jax.kernels.place import cpu_place, default_place, place_of


def linear(
    x: Float[Array, "*batch inputs"],
    tensor: SparseTensor,
    *,
    output_dtype: DTypeLike | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "*batch outputs"]:
    """x @ expand(tensor).T in `output_dtype` (x's own by default); tensor.shape is (outputs, inputs).

    Products are summed in float32. With few rows of x the matrix is never expanded on CPU and CUDA
    (`cpu.fused` and `triton.fused` say when); otherwise it is, inside jit only when x is there. The gradient
    with respect to x is g @ expand(tensor): nothing dense is kept for the backward pass. On CUDA a row of x
    with an infinity may give NaN where the dense product gives an infinity. Raises InvalidInputError unless
    shapes agree and x is float, UnsupportedError for an implementation the device lacks.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InvalidInputError(
            "linear", got=f"x of {x.dtype}", expected="a float dtype", fix="convert x first: x.astype(...)"
        )
    if len(tensor.shape) != 2 or x.shape[-1] != tensor.shape[1]:
        raise InvalidInputError(
            "linear",
            got=f"x of shape {x.shape} and a tensor of shape {tensor.shape}",
            expected="(..., inputs) and (outputs, inputs)",
            fix="transpose or reshape the weight before encoding it",
        )
    check_parts("linear", tensor)
    result = jnp.dtype(x.dtype if output_dtype is None else output_dtype)
    # Its gradient is then summed over the devices that hold other weights.
    x = varying_as(jnp.asarray(x), *tensor.parts)
    return _linear(_How(x.dtype, result, implementation), x, tensor)


@dataclass(frozen=True)
class _How:
    """The static side of a product, which the backward pass needs too."""

    input_dtype: jnp.dtype
    output_dtype: jnp.dtype
    implementation: Implementation | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(how: _How, x: jax.Array, tensor: SparseTensor) -> jax.Array:
    """Fused where the platform it is compiled for has that, else expanded and then multiplied."""

    def expanded(x: jax.Array, tensor: SparseTensor) -> jax.Array:
        weight = expand(tensor, after=x, implementation=how.implementation)
        return dense(x, weight, output_dtype=how.output_dtype)

    def on_cpu(x: jax.Array, tensor: SparseTensor) -> jax.Array:
        if cpu.fused(x, tensor.layout, how.output_dtype):
            return cpu.linear(x, tensor, how.output_dtype)
        if isinstance(tensor.layout, DenseLayout):
            return expanded(x, tensor)
        # The dense product there is one of float32 anyway.
        return dense(x, cpu_expand(tensor, x, widened=True), output_dtype=how.output_dtype)

    def on_cuda(x: jax.Array, tensor: SparseTensor) -> jax.Array:
        fits = triton.fused(x, tensor.layout, how.output_dtype)
        return triton.linear(x, tensor, how.output_dtype) if fits else expanded(x, tensor)

    ways = {"cpu": on_cpu, "triton": on_cuda, "xla": expanded}
    if how.implementation is not None:
        return ways[resolve(how.implementation, place_of(tensor))](x, tensor)
    branches = {"cpu": ways[resolve(None, cpu_place())]}
    if resolve(None, default_place()) == "triton":  # JAX traces every branch, and a kernel takes a while
        branches["cuda"] = on_cuda
    return lax.platform_dependent(x, tensor, **branches, default=expanded)


def _forward(how: _How, x: jax.Array, tensor: SparseTensor) -> tuple[jax.Array, SparseTensor]:
    return _linear(how, x, tensor), tensor


def _backward(how: _How, tensor: SparseTensor, gradient: jax.Array) -> tuple[jax.Array, None]:
    weight = expand(tensor, after=gradient, implementation=how.implementation)
    return dense(gradient, weight.T, output_dtype=how.input_dtype), None


_linear.defvjp(_forward, _backward)
