"""Products of a few rows of x on a device: with compressed weights, and with the same ones dense in XLA.

A cell is a shape, a codec, a sparsity and a number of rows. Beside `endor.linear` and the dense product there
is expanding first and multiplying then, each time the whole of it; and where Triton multiplies, the body of
its kernel that `endor.linear` did not choose. All multiply the same weights; every copy of them has an x of
its own. What each gives is compared with a product in float32.

limit: how often the dense time has the time that reading the compressed weights, x and the result would take
at the copy bandwidth of the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from endor_jax.arrays import dtype_from_name
from endor_jax.bench.device import DeviceFacts, device_facts, device_implementations
from endor_jax.bench.device_cells import Failure, Walk, attempt, record_json
from endor_jax.bench.device_copy import copy_bytes_per_second, copy_programs
from endor_jax.bench.device_grid import LinearCell
from endor_jax.bench.device_matrices import (
    DeviceMatrix,
    copies_on_device,
    device_matrix,
    words_on_device,
)
from endor_jax.bench.device_timing import DeviceTiming, Program, compiled, matrices_of, time_programs
from endor_jax.bench.environment import Environment, environment
from endor_jax.bench.matrices import shape_name
from endor_jax.format.layout import FieldLayout
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import parse_codec
from endor_jax.kernels.backends import Implementation
from endor_jax.kernels.expand import expand
from endor_jax.kernels.linear import linear, triton

LINEAR, EXPANDED, DENSE = "linear", "expand, dot", "dense dot"
ERROR_LIMIT = 0.01
"""Relative error from which a product of 16-bit floats is wrong: rounding gives less than half of it."""
CELL_SECONDS = 5.0
"""What a cell is expected to take, most of it compiling: an estimate, not yet measured."""


@dataclass(frozen=True)
class DeviceLinearSettings:
    """What is measured. implementation: of ours; None takes the device's best. seconds: per contender."""

    cells: tuple[LinearCell, ...]
    dtype: str = "bfloat16"
    implementation: Implementation | None = None
    seconds: float = 0.3
    limit_seconds: float | None = None


@dataclass(frozen=True)
class DeviceLinearCase:
    """One cell, measured. Timings are rated by the bytes of weights, x and result.

    moved_bytes: those of the compressed product. errors: by contender, ‖y − y₃₂‖ / ‖y₃₂‖ beside the product
    in float32.
    """

    cell: LinearCell
    stored_bytes: int
    moved_bytes: int
    timings: tuple[DeviceTiming, ...]
    errors: Mapping[str, float]
    failures: tuple[Failure, ...]

    def timing(self, contender: str) -> DeviceTiming | None:
        """Of one contender; None if it failed."""
        return next((timing for timing in self.timings if timing.contender == contender), None)

    def ratio(self, timing: DeviceTiming) -> float | None:
        """How many times as fast as the dense product."""
        dense = self.timing(DENSE)
        return dense.median_seconds / timing.median_seconds if dense else None

    @property
    def limit_ratio(self) -> float | None:
        """What the ratio would be if only memory took time."""
        dense = self.timing(DENSE)
        if dense is None:
            return None
        return dense.median_seconds * copy_bytes_per_second(self.timings) / self.moved_bytes

    def to_json(self) -> dict[str, Any]:
        """As JSON, with ratios."""
        return asdict(self) | {
            "cell": asdict(self.cell) | {"shape": shape_name(self.cell.shape)},
            "copy_bytes_per_second": copy_bytes_per_second(self.timings),
            "limit_ratio": self.limit_ratio,
            "timings": [timing.to_json() | {"dense_ratio": self.ratio(timing)} for timing in self.timings],
        }


@dataclass(frozen=True)
class DeviceLinearRecord:
    """All cases of a run, with what they were measured on."""

    settings: DeviceLinearSettings
    cases: tuple[DeviceLinearCase, ...]
    left_out: tuple[LinearCell, ...]
    device: DeviceFacts
    environment: Environment

    @property
    def faults(self) -> tuple[str, ...]:
        """What failed or is wrong, a line each."""
        return tuple(
            f"{case.cell}: {text}"
            for case in self.cases
            for text in (
                *(f"{each.contender} failed: {each.message}" for each in case.failures),
                *(
                    f"{name} is off by {error:.2g}"
                    for name, error in case.errors.items()
                    if not error < ERROR_LIMIT  # nor NaN
                ),
            )
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return record_json("device linear", self)


def measure_device_linear(
    settings: DeviceLinearSettings,
    *,
    report: Callable[[str], None] = lambda what: None,
    keep: Callable[[DeviceLinearRecord], None] = lambda record: None,
) -> DeviceLinearRecord:
    """Measures every cell on the default device, as long as there is time.

    keep: called after every cell with what there is by then. Raises OptionError for a codec or dtype that
    cannot be.
    """
    for cell in settings.cells:
        parse_codec(cell.codec)
    settings = replace(settings, implementation=settings.implementation or device_implementations()[0])
    device, surroundings = device_facts(), environment()
    copies = copy_programs()
    walk = Walk(settings.cells, CELL_SECONDS, settings.limit_seconds, report)
    record = DeviceLinearRecord(settings, (), (), device, surroundings)
    weights: Weights | None = None
    for cell in walk:
        if weights is None or not weights.serve(cell):
            del weights  # before the next ones take its memory
            weights = Weights.of(cell, settings.dtype, device.cache_bytes)
        case = linear_case(settings, cell, weights, copies)
        record = DeviceLinearRecord(settings, (*record.cases, case), walk.left_out, device, surroundings)
        keep(record)
    return DeviceLinearRecord(settings, record.cases, walk.left_out, device, surroundings)


@dataclass(frozen=True)
class Weights:
    """A matrix on the device, compressed and dense, each as often as a program works on it."""

    cell: LinearCell
    matrix: DeviceMatrix
    words: tuple[jax.Array, ...]
    dense: tuple[jax.Array, ...]

    @classmethod
    def of(cls, cell: LinearCell, dtype: str, cache_bytes: int) -> Weights:
        """Those of a cell."""
        matrix = device_matrix(cell.shape, codec=cell.codec, sparsity=cell.sparsity, dtype=dtype)
        size = matrix.dense_bytes
        count = matrices_of(cache_bytes, matrix_bytes=size, moved_bytes=size)
        words = words_on_device(matrix, cache_bytes, moved_bytes=matrix.stored_bytes)
        return cls(cell, matrix, words, copies_on_device(jnp.asarray(matrix.dense), count))

    def serve(self, cell: LinearCell) -> bool:
        """Whether they are those of another cell too: one with another number of rows."""
        return replace(cell, rows=self.cell.rows) == self.cell


def linear_case(
    settings: DeviceLinearSettings, cell: LinearCell, weights: Weights, copies: Sequence[Program]
) -> DeviceLinearCase:
    """One cell beside the copies."""
    keys = jax.random.split(jax.random.key(cell.rows), max(len(weights.words), len(weights.dense)))
    dtype = dtype_from_name(settings.dtype)
    xs = tuple(jax.random.normal(key, (cell.rows, cell.shape[1]), jnp.float32).astype(dtype) for key in keys)
    stored, small = weights.matrix.stored_bytes, cell.rows * sum(cell.shape) * dtype.itemsize
    ways = {
        LINEAR: (_linear(settings, weights), weights.words, stored),
        EXPANDED: (_expanded(settings, weights), weights.words, stored),
        DENSE: (_dense, weights.dense, weights.matrix.dense_bytes),
    }
    if settings.implementation == "triton":
        ways |= {
            f"{LINEAR}, {body}": (_body(weights, body), weights.words, stored)
            for body in _others(xs[0], weights)
        }
    programs: list[Program] = list(copies)
    failures: list[Failure] = []
    errors: dict[str, float] = {}
    exact = _in_float32(xs[0], weights.dense[0])
    for name, (way, arrays, size) in ways.items():
        made = attempt(name, product_program, name, way, xs, arrays, size + small)
        if isinstance(made, Failure):
            failures.append(made)
        else:
            programs.append(made)
            errors[name] = float(_relative_error(made.start()[0], exact))
    timings = time_programs(programs, seconds=settings.seconds)
    return DeviceLinearCase(cell, stored, stored + small, timings, errors, tuple(failures))


Way = Callable[[Sequence[jax.Array], Sequence[jax.Array]], tuple[jax.Array, ...]]
"""All x and all weights, dense or words, to all products."""


def product_program(
    name: str, way: Way, xs: tuple[jax.Array, ...], weights: tuple[jax.Array, ...], moved_bytes: int
) -> Program:
    """x number i times the weights number i, for all of them."""
    xs = xs[: len(weights)]
    run, seconds = compiled(way, xs, weights)
    return Program(name, moved_bytes, len(weights), seconds, lambda: run(xs, weights))


def _linear(settings: DeviceLinearSettings, weights: Weights) -> Way:
    layout, implementation = weights.matrix.tensor.layout, settings.implementation

    def way(xs: Sequence[jax.Array], words: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(
            linear(x, SparseTensor((each,), layout), implementation=implementation)
            for x, each in zip(xs, words, strict=True)
        )

    return way


def _others(x: jax.Array, weights: Weights) -> list[triton.Body]:
    """The bodies of Triton's product that this one could have and has not."""
    layout = weights.matrix.tensor.layout
    if not isinstance(layout, FieldLayout) or not triton.fused(x, layout, x.dtype):
        return []
    chosen = triton.body_of(x, layout)
    return [body for body in triton.bodies_for(x, layout) if body != chosen]


def _body(weights: Weights, body: triton.Body) -> Way:
    layout = weights.matrix.tensor.layout

    def way(xs: Sequence[jax.Array], words: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(
            triton.linear(x, SparseTensor((each,), layout), x.dtype, body=body)
            for x, each in zip(xs, words, strict=True)
        )

    return way


def _expanded(settings: DeviceLinearSettings, weights: Weights) -> Way:
    """One matrix is dense at a time, as in a model: the next is expanded when the product before is there."""
    layout, implementation = weights.matrix.tensor.layout, settings.implementation

    def way(xs: Sequence[jax.Array], words: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        products: list[jax.Array] = []
        for x, each in zip(xs, words, strict=True):
            before = products[-1] if products else x
            weight = expand(SparseTensor((each,), layout), after=before, implementation=implementation)
            products.append(jnp.dot(x, weight.T))
        return tuple(products)

    return way


def _dense(xs: Sequence[jax.Array], weights: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(jnp.dot(x, weight.T) for x, weight in zip(xs, weights, strict=True))


@jax.jit
def _in_float32(x: jax.Array, weight: jax.Array) -> jax.Array:
    wide = (each.astype(jnp.float32) for each in (x, weight))
    return jnp.einsum("rc,oc->ro", *wide, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _relative_error(got: jax.Array, exact: jax.Array) -> jax.Array:
    return jnp.linalg.norm(got.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
