"""`linear`, the public product with a compressed matrix, differentiable with respect to x."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from endor_jax.errors import InvalidInputError
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.backends import Implementation
from endor_jax.kernels.expand import expand
from endor_jax.kernels.linear.dense import dense


def linear(
    x: Float[Array, "*batch inputs"], tensor: SparseTensor, *, implementation: Implementation | None = None
) -> Float[Array, "*batch outputs"]:
    """x @ expand(tensor).T in x's dtype, float32 accumulation; tensor.shape is (outputs, inputs).

    Its gradient with respect to x is g @ expand(tensor): nothing dense is kept for the backward pass.
    Raises InvalidInputError unless shapes agree, UnsupportedError for an implementation the device lacks.
    """
    if len(tensor.shape) != 2 or x.shape[-1] != tensor.shape[1]:
        raise InvalidInputError(
            "linear",
            got=f"x of shape {x.shape} and a tensor of shape {tensor.shape}",
            expected="(..., inputs) and (outputs, inputs)",
            fix="transpose or reshape the weight before encoding it",
        )
    return _linear(implementation, x, tensor)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(implementation: Implementation | None, x: jax.Array, tensor: SparseTensor) -> jax.Array:
    return dense(x, expand(tensor, implementation=implementation))


def _forward(
    implementation: Implementation | None, x: jax.Array, tensor: SparseTensor
) -> tuple[jax.Array, SparseTensor]:
    return _linear(implementation, x, tensor), tensor


def _backward(
    implementation: Implementation | None, tensor: SparseTensor, gradient: jax.Array
) -> tuple[jax.Array, None]:
    return dense(gradient, jnp.transpose(expand(tensor, implementation=implementation))), None


_linear.defvjp(_forward, _backward)
