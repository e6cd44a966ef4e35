"""The fused product on a GPU, Pallas-Triton: fields are expanded in registers and multiplied, never stored.

A program takes some rows of the matrix and some segments of them, and writes what these add to the product,
in float32; XLA adds up the segments. Two bodies: `triton_vector` multiplies and adds element by element, for
few rows of x; `triton_tensor` gives the elements to tensor cores, which takes as long for one row as for 16.
Escapes, which are no fields, are a segment more of every row (`triton_escapes`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt32

from endor_jax.arrays import FLOAT_FORMATS
from endor_jax.format.layout import TENSOR_LIMIT, FieldLayout, TensorLayout
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.config import linear_block, most_sums
from endor_jax.kernels.custom_call import mapped, varying_as
from endor_jax.kernels.expand.triton import expand
from endor_jax.kernels.groups import groups_of
from endor_jax.kernels.linear.dense import dense
from endor_jax.kernels.linear.triton_body import ProductBody, Task
from endor_jax.kernels.linear.triton_tensor import TENSOR
from endor_jax.kernels.linear.triton_vector import VECTOR

Body = Literal["vector", "tensor"]
_BODIES: dict[Body, ProductBody] = {"vector": VECTOR, "tensor": TENSOR}

VECTOR_ROWS = 4
"""Rows of x up to which the vector body can be used: their columns are in registers."""
MOST_ROWS = 128
"""Rows of x up to which the fused product is used; where the dense one overtakes it is not measured yet."""


def bodies_for(x: jax.Array | jax.ShapeDtypeStruct, layout: FieldLayout) -> tuple[Body, ...]:
    """The bodies that can multiply these: tensor cores want x in the dtype of the matrix, one of 16 bits. No
    body if its sums would be an eighth of the dense matrix or more: that may as well be expanded.
    """
    rows = math.prod(x.shape[:-1])
    padded = TENSOR.padded_rows(rows)
    if not 1 <= rows <= MOST_ROWS or padded * 2 * max(layout.rows, layout.columns) >= TENSOR_LIMIT:
        return ()  # x and the sums are indexed with int32
    bodies: tuple[Body, ...] = ()
    if rows <= VECTOR_ROWS and layout.segments <= most_sums(layout, rows=rows):
        bodies = ("vector",)
    if x.dtype == layout.dtype and layout.number.bits == 16 and most_sums(layout, rows=padded) > 0:
        bodies = (*bodies, "tensor")
    return bodies


def body_of(x: jax.Array | jax.ShapeDtypeStruct, layout: FieldLayout) -> Body | None:
    """Which body multiplies; None if neither can. A pure function of shapes, dtypes and layout.

    Machine instructions per element (docs/kernels.md): vector 14 for one row, 16 for two, 21 for four; tensor
    11 for up to 16, but its warps wait for each other. So vector for one row, until a device tells better.
    """
    bodies = bodies_for(x, layout)
    if math.prod(x.shape[:-1]) > 1 and "tensor" in bodies:
        return "tensor"
    return bodies[0] if bodies else None


def fused(x: jax.Array | jax.ShapeDtypeStruct, layout: TensorLayout, output_dtype: DTypeLike) -> bool:
    """Whether this product is computed fused. Where a codec without bitmap has escapes, their fields are no
    zeros: such a matrix is expanded.
    """
    if not isinstance(layout, FieldLayout) or (layout.bitmap is None and layout.escape_capacity):
        return False
    dtypes = {jnp.dtype(x.dtype).name, jnp.dtype(output_dtype).name}
    return dtypes <= FLOAT_FORMATS.keys() and body_of(x, layout) is not None


def linear(
    x: Float[Array, "*batch inputs"],
    tensor: SparseTensor,
    output_dtype: DTypeLike,
    *,
    body: Body | None = None,
    interpret: bool = False,
) -> Float[Array, "*batch outputs"]:
    """x @ expand(tensor).T in `output_dtype`, summed in float32 and rounded once, for what `fused` allows.

    With escapes a row of x that holds an infinity may give NaN where the dense product gives an infinity.
    body: to compare them; by default what `body_of` says. interpret: run the kernel's operations one by one,
    on any device: what the tests do where there is no GPU.
    """
    layout = tensor.layout
    assert isinstance(layout, FieldLayout)
    outputs = layout.shape[0]

    @jax.custom_batching.custom_vmap
    def product(
        x: Float[Array, "*batch inputs"], *words: UInt32[Array, " _"]
    ) -> Float[Array, "*batch outputs"]:
        rows = x.reshape(-1, x.shape[-1])
        chosen = body or body_of(rows, layout)
        assert chosen is not None
        parts = [_part(rows, part, layout, _BODIES[chosen], interpret=interpret) for part in words]
        whole = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
        return whole[:, :outputs].astype(output_dtype).reshape(*x.shape[:-1], outputs)

    @product.def_vmap
    def _(
        size: int, batched: Sequence[bool], x: Float[Array, " ..."], *words: UInt32[Array, " ..."]
    ) -> tuple[Float[Array, " ..."], bool]:
        batch = jnp.broadcast_to(x, (size, *x.shape)) if not batched[0] else x
        if any(batched[1:]):
            return mapped(product, batched, x, *words), True
        together = jax.ShapeDtypeStruct((math.prod(batch.shape[:-1]), batch.shape[-1]), batch.dtype)
        if body is None and not fused(together, layout, output_dtype):
            # More rows of x than a fused product has: the matrix is expanded, once.
            weight = expand(SparseTensor(words, layout), batch, interpret=interpret)
            return dense(batch, weight, output_dtype=output_dtype), True
        return product(batch, *words), True  # a batch of x is more rows of x

    return product(x, *(jnp.asarray(words) for words in tensor.parts))


def _part(
    x: Float[Array, "rows inputs"],
    words: UInt32[Array, " words"],
    layout: FieldLayout,
    body: ProductBody,
    *,
    interpret: bool,
) -> Float[Array, "rows outputs"]:
    """The product with the rows of one part, padding rows too, in float32."""
    rows = body.padded_rows(x.shape[0])
    block = linear_block(layout, tensor_cores=body.tensor_cores, rows=rows)
    columns = layout.segments * groups_of(layout).width
    arranged = body.arrange(jnp.pad(x, ((0, 0), (0, columns - x.shape[1]))), layout)
    arranged, words = varying_as(arranged, words), varying_as(words, arranged)
    sums = -(-layout.segments // block.segments)
    escaping = -(-layout.rows // block.escape_rows) if layout.escape_capacity else 0
    partial = pl.pallas_call(
        functools.partial(
            _kernel,
            body=body,
            task=functools.partial(Task, layout=layout, block=block, rows=x.shape[0]),
            sums=sums,
            escaping=escaping,
        ),
        out_shape=jax.ShapeDtypeStruct(
            ((sums + bool(escaping)) * rows * layout.rows,),
            jnp.float32,
            manual_axis_type=jax.typeof(words).manual_axis_type,
        ),
        # In one dimension: the others have room for 65,535.
        grid=(escaping + -(-layout.rows // block.rows) * sums,),
        compiler_params=pltriton.CompilerParams(num_warps=block.warps, num_stages=1),
        interpret=interpret,
        name="endor_linear",
    )(words, arranged)
    return body.sums_of(partial, layout, x.shape[0]).sum(axis=0)


def _kernel(
    words: Any, x: Any, out: Any, *, body: ProductBody, task: Callable[..., Task], sums: int, escaping: int
) -> None:
    """One program: a block of rows, and some of their segments; the first `escaping` ones: escapes, which are
    fewer, but are waited for one after the other."""
    program = pl.program_id(0)
    mine = task(words, x, out)

    def multiply() -> None:
        number = program - escaping
        body.multiply(mine, number // sums * mine.block.rows, number % sums)

    if not escaping:
        multiply()
        return
    pl.when(program >= escaping)(multiply)

    @pl.when(program < escaping)
    def _() -> None:
        body.add_escapes(mine, program * mine.block.escape_rows, sums)
