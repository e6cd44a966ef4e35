"""Linear: a module whose weight is dense or compressed; which product runs is decided by the kernels."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels import linear as products
from endor_jax.models.axis import Axis, gather, own_rows
from endor_jax.models.parameter import array


class Linear(nnx.Module):
    """x @ weight.T + bias; weight is (outputs, inputs), as checkpoints store it, bias (outputs,) or None.

    weight holds an array or a SparseTensor. When `tapped` is set, a call leaves its x in `inputs`, for
    calibration: pruning weighs a matrix by what it is multiplied with. axis: of the devices that each hold
    some rows of weight (and a whole bias).
    """

    axis: Axis | None = None

    def __init__(self, inputs: int, outputs: int, *, bias: bool):
        self.weight = nnx.Param(jnp.zeros((outputs, inputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None
        self.outputs = outputs
        self.tapped = False

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The product in x's dtype, summed in float32; the bias is added in x's dtype."""
        return gather(self.own(x), self.axis, self.outputs)

    def own(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch own_outputs"]:
        """What `__call__` gives, as far as it is on this device: undefined behind the last output."""
        if self.tapped:
            self.inputs = nnx.Intermediate(x)
        weight = self.weight.get_value()
        y = products.linear(x, weight) if isinstance(weight, SparseTensor) else products.dense(x, weight)
        if self.bias is None:
            return y
        bias = own_rows(array(self.bias).astype(x.dtype), self.axis, y.shape[-1])
        return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
