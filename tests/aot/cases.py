"""What is compiled: kernel × shape × dtype × codec × device, and the function that each is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from endor_jax.format.layout import FieldLayout, TensorSpec, plan_layout
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import parse_codec
from endor_jax.kernels.config import WARP, expand_block, linear_block
from endor_jax.kernels.expand import mosaic as expand_mosaic
from endor_jax.kernels.expand import triton as expand_triton
from endor_jax.kernels.groups import groups_of
from endor_jax.kernels.linear import triton as linear_triton
from tests.aot import targets

CODECS = {
    "bfloat16": ("raw", "packed:1", "packed:2", "packed:3", "packed:7", "dense-raw", "dense-packed:3"),
    "float16": ("raw", "packed:1", "packed:2", "packed:4", "dense-raw", "dense-packed:2"),
    "float32": ("raw", "packed:2", "packed:7", "dense-raw", "dense-packed:3"),
}
INTEGERS = ("int8", "int4", "dense-int8", "dense-int4")
SQUARE = (4096, 4096)
MODEL_SHAPES = {
    "Llama-2-7B down": (4096, 11008),
    "Llama-2-70B down": (8192, 28672),
    "LLaMA-65B up": (22016, 8192),
    "OPT-66B up": (36864, 9216),
}
"""Rows are multiples of 16 bytes."""
RAGGED_SHAPES = ((24, 700), (33, 1025), (8, 8, 45))
"""Rows are not."""


@dataclass(frozen=True)
class Case:
    """kernel: a key of PROGRAMS. capability: of the device, a key of targets.DEVICES. rows: of x, of a
    product."""

    kernel: str
    shape: tuple[int, ...]
    dtype: str
    codec: str
    escapes: int = 0
    capability: str = targets.H200
    rows: int = 0

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        rows = f"-rows{self.rows}" if self.rows else ""
        return f"{self.kernel}-{size}-{self.dtype}-{self.codec}{rows}-sm{self.capability.replace('.', '')}"


@dataclass(frozen=True)
class Program:
    """elements_per_thread: of the matrix; of a kernel with a loop, those of one turn."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    elements_per_thread: int


def every() -> list[Case]:
    """Every case of every kernel."""
    kinds = (every_codec, other_shapes, other_devices)
    expanding = [case for kind in kinds for case in kind("expand", 0)]
    products = [
        case
        for kernel, rows in (("vector", 1), ("tensor", 8))
        for kind in kinds
        for case in kind(kernel, rows)
    ]
    mosaic = [case for kind in kinds[:2] for case in kind("mosaic expand", 0)]  # for Hopper alone
    return [*expanding, *mosaic, *(case for case in products if _multiplies(case)), *other_rows()]


def every_codec(kernel: str, rows: int) -> list[Case]:
    """Every dtype and codec, for the H200; with escapes where the codec may have them."""
    return [
        Case(kernel, SQUARE, dtype, codec, escapes=1000 if "packed" in codec else 0, rows=rows)
        for dtype, codecs in CODECS.items()
        for codec in (*codecs, *INTEGERS)
    ]


def other_shapes(kernel: str, rows: int) -> list[Case]:
    """The layers of large models, and rows that no vector fits."""
    shapes = (*MODEL_SHAPES.values(), *RAGGED_SHAPES)
    return [
        Case(kernel, shape, "bfloat16", codec, rows=rows) for shape in shapes for codec in ("raw", "packed:2")
    ]


def other_devices(kernel: str, rows: int) -> list[Case]:
    """Every device but the H200."""
    return [
        Case(kernel, SQUARE, "bfloat16", codec, capability=capability, rows=rows)
        for capability in targets.DEVICES
        if capability != targets.H200
        for codec in ("raw", "packed:2")
    ]


def other_rows() -> list[Case]:
    """Products with other numbers of rows of x."""
    vector = [Case("vector", SQUARE, dtype, "packed:2", rows=rows) for dtype in CODECS for rows in (2, 3, 4)]
    numbers = (1, 2, 16, 32, 64, 128)
    escaping = [
        Case("tensor", SQUARE, "bfloat16", "packed:2", escapes=1000, rows=rows) for rows in (16, 32, 64)
    ]
    escaping += [Case("vector", (4096, 64), "bfloat16", "packed:2", escapes=1000, rows=1)]
    tensor = [
        Case("tensor", SQUARE, "bfloat16", codec, rows=rows)
        for codec in ("packed:2", "int4")
        for rows in numbers
    ]
    largest = [
        Case("tensor", SQUARE, "bfloat16", "packed:2", capability=capability, rows=128)
        for capability in targets.DEVICES
        if capability != targets.H200
    ]
    return [*vector, *tensor, *escaping, *largest]


def _multiplies(case: Case) -> bool:
    """Whether there is such a fused product: of matrices, on tensor cores of 16-bit dtypes, and of a codec
    without bitmap only if nothing escapes."""
    dense_escapes = case.codec.startswith("dense") and case.escapes
    return len(case.shape) == 2 and not dense_escapes and (case.kernel, case.dtype) != ("tensor", "float32")


def program(case: Case) -> Program:
    """What there is to compile of a case."""
    return PROGRAMS[case.kernel](case)


def tensor_of(case: Case) -> SparseTensor:
    """Shapes in place of words: about as many as at half sparsity. Compiling looks at nothing else."""
    layout = plan_layout({"w": TensorSpec(case.shape, case.dtype, parse_codec(case.codec))})["w"]
    assert isinstance(layout, FieldLayout)
    words = jax.ShapeDtypeStruct((math.prod(case.shape) // 2 + 4096,), jnp.uint32)
    return SparseTensor((words,), replace(layout, escape_capacity=case.escapes))


def _expand(case: Case) -> Program:
    tensor = tensor_of(case)
    assert isinstance(tensor.layout, FieldLayout)
    block, groups = expand_block(tensor.layout), groups_of(tensor.layout)
    elements = block.rows * groups.width // (WARP * block.warps)
    expand = expand_mosaic.expand if case.kernel == "mosaic expand" else expand_triton.expand
    return Program(expand, (tensor,), elements)


def _product(case: Case) -> Program:
    tensor = tensor_of(case)
    assert isinstance(tensor.layout, FieldLayout)
    on_tensor_cores = case.kernel == "tensor"
    block = linear_block(tensor.layout, tensor_cores=on_tensor_cores, rows=case.rows)
    width = groups_of(tensor.layout, most_words=block.words).width
    x = jax.ShapeDtypeStruct((case.rows, case.shape[1]), jnp.dtype(case.dtype))
    function = functools.partial(
        linear_triton.linear, output_dtype=case.dtype, body="tensor" if on_tensor_cores else "vector"
    )
    return Program(function, (x, tensor), block.at_once * width // (WARP * block.warps))


PROGRAMS: dict[str, Callable[[Case], Program]] = {
    "expand": _expand,
    "mosaic expand": _expand,
    "vector": _product,
    "tensor": _product,
}
"""Expand, by Triton and by Mosaic, and the two bodies of the fused product."""
