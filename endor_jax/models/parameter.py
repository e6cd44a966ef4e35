"""A parameter that is used as a plain array: every one but the weights of Linear, which products read."""

from __future__ import annotations

import jax
from flax import nnx

from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.expand import expand


def array(parameter: nnx.Param) -> jax.Array:
    """The array that `parameter` holds, expanded if it is a SparseTensor, as the views of a record are."""
    value = parameter.get_value()
    return expand(value) if isinstance(value, SparseTensor) else value
