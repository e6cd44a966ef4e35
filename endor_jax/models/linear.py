"""Linear: a module whose weight is dense or compressed; which product runs is decided by the kernels."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels import linear as products
from endor_jax.models.parameter import array


class Linear(nnx.Module):
    """x @ weight.T + bias; weight is (outputs, inputs), as checkpoints store it, bias (outputs,) or None.

    weight holds an array or a SparseTensor. When `tapped` is set, a call leaves its x in `inputs`, for
    calibration: pruning weighs a matrix by what it is multiplied with.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool):
        self.weight = nnx.Param(jnp.zeros((outputs, inputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None
        self.tapped = False

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The product in x's dtype, summed in float32; the bias is added in x's dtype."""
        if self.tapped:
            self.inputs = nnx.Intermediate(x)
        weight = self.weight.get_value()
        y = products.linear(x, weight) if isinstance(weight, SparseTensor) else products.dense(x, weight)
        if self.bias is None:
            return y
        bias = array(self.bias).astype(x.dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
