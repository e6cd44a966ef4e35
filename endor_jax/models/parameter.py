"""A parameter that is used as a plain array: every one but the weights of Linear, which products read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.expand import expand
from endor_jax.models.axis import Axis


def array(parameter: nnx.Param) -> jax.Array:
    """The array that `parameter` holds, expanded if it is a SparseTensor, as the views of a record are."""
    value = parameter.get_value()
    return expand(value) if isinstance(value, SparseTensor) else value


def rows_at(
    parameter: nnx.Param, index: Int[Array, "*batch"], *, total: int, axis: Axis | None
) -> Float[Array, "*batch columns"]:
    """Rows of a matrix with `total` rows, which may be spread over an axis; an index is clipped into it."""
    rows = array(parameter)
    if axis is None:
        return jnp.take(rows, index, axis=0, mode="clip")
    here = jnp.clip(index, 0, total - 1) - lax.axis_index(axis.name).astype(index.dtype) * rows.shape[0]
    found = jnp.take(rows, here, axis=0, mode="clip")
    found = jnp.where(((here >= 0) & (here < rows.shape[0]))[..., None], found.astype(jnp.float32), 0.0)
    return lax.psum(found, axis.name).astype(rows.dtype)  # one device has it, the others zeros: exact
