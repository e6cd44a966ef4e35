"""What calibration sums up over the inputs of a matrix: squared norms for Wanda, products for SparseGPT.

Pure functions on pytrees, to be called inside the jitted step that computes the inputs. Sums are float32
whatever the inputs are.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32


class SquaredNorms(NamedTuple):
    """sums: Σ x_c² per input c. rows: how many inputs x were summed."""

    sums: Float[Array, " columns"]
    rows: Int32[Array, ""]


class Gram(NamedTuple):
    """products: Σ x xᵀ, which is symmetric. rows: how many inputs x were summed."""

    products: Float[Array, "columns columns"]
    rows: Int32[Array, ""]


class Cross(NamedTuple):
    """products: Σ x x̃ᵀ, x from the dense model, x̃ from the pruned one. rows: how many pairs were summed."""

    products: Float[Array, "columns columns"]
    rows: Int32[Array, ""]


class Paired(NamedTuple):
    """What the pruned model's inputs sum up to, and what they do with the dense model's."""

    gram: Gram
    cross: Cross


def no_squared_norms(columns: int) -> SquaredNorms:
    """The sums before the first input."""
    return SquaredNorms(jnp.zeros(columns, jnp.float32), jnp.zeros((), jnp.int32))


def no_gram(columns: int) -> Gram:
    """The sums before the first input."""
    return Gram(jnp.zeros((columns, columns), jnp.float32), jnp.zeros((), jnp.int32))


def no_cross(columns: int) -> Cross:
    """The sums before the first pair of inputs."""
    return Cross(*no_gram(columns))


def no_paired(columns: int) -> Paired:
    """The sums before the first pair of inputs."""
    return Paired(no_gram(columns), no_cross(columns))


def add_squared_norms(norms: SquaredNorms, x: Float[Array, "*batch columns"]) -> SquaredNorms:
    """The sums with every x of a batch added."""
    inputs = _inputs(x)
    return SquaredNorms(norms.sums + jnp.sum(inputs * inputs, axis=0), norms.rows + inputs.shape[0])


def add_gram(gram: Gram, x: Float[Array, "*batch columns"]) -> Gram:
    """The sums with every x of a batch added."""
    inputs = _inputs(x)
    return Gram(gram.products + _products(inputs, inputs), gram.rows + inputs.shape[0])


def add_cross(
    cross: Cross, x: Float[Array, "*batch columns"], moved: Float[Array, "*batch columns"]
) -> Cross:
    """The sums with every pair of a batch added: x of the dense model, `moved` of the pruned one."""
    inputs = _inputs(x)
    return Cross(cross.products + _products(inputs, _inputs(moved)), cross.rows + inputs.shape[0])


def add_paired(
    paired: Paired, x: Float[Array, "*batch columns"], moved: Float[Array, "*batch columns"]
) -> Paired:
    """The sums with every pair of a batch added: x of the dense model, `moved` of the pruned one."""
    return Paired(add_gram(paired.gram, moved), add_cross(paired.cross, x, moved))


def _inputs(x: Float[Array, "*batch columns"]) -> Float[Array, "rows columns"]:
    return x.reshape(-1, x.shape[-1]).astype(jnp.float32)


def _products(
    one: Float[Array, "rows columns"], other: Float[Array, "rows columns"]
) -> Float[Array, "columns columns"]:
    # HIGHEST: left to itself a GPU multiplies float32 with 10 bits of mantissa.
    return jnp.matmul(one.T, other, precision=lax.Precision.HIGHEST)
