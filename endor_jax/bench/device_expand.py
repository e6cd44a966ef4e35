"""Expand on a device: bytes read and written per second, as a share of what copying memory reaches there.

A cell is a shape, a codec and a sparsity. Ours and XLA's expand the same words, in turns with two copies;
after the last sample what each has written is compared with what was encoded, bit for bit.

limit: an expansion that did nothing but move its bytes would have a share of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from endor_jax.arrays import FLOAT_FORMATS, dtype_from_name
from endor_jax.bench.device import DeviceFacts, device_facts, device_implementations
from endor_jax.bench.device_cells import Failure, Walk, attempt, record_json
from endor_jax.bench.device_copy import copy_bytes_per_second, copy_programs
from endor_jax.bench.device_grid import ExpandCell
from endor_jax.bench.device_matrices import (
    DeviceMatrix,
    device_matrix,
    words_on_device,
)
from endor_jax.bench.device_timing import DeviceTiming, Program, compiled, time_programs
from endor_jax.bench.environment import Environment, environment
from endor_jax.bench.matrices import shape_name
from endor_jax.format.tensor import SparseTensor, TensorLayout
from endor_jax.format.values import parse_codec
from endor_jax.kernels.backends import Implementation
from endor_jax.kernels.expand import expand, mosaic

CELL_SECONDS = 6.0
"""What a cell is expected to take, most of it compiling and encoding: an estimate, not yet measured."""


@dataclass(frozen=True)
class DeviceExpandSettings:
    """What is measured. implementations: the first is ours; none: those that the device is offered. seconds:
    for each contender in each cell."""

    cells: tuple[ExpandCell, ...]
    dtype: str = "bfloat16"
    implementations: tuple[Implementation, ...] = ()
    seconds: float = 0.3
    limit_seconds: float | None = None


@dataclass(frozen=True)
class DeviceExpandCase:
    """One cell, measured. Timings are rated by bytes read and written. exact: by contender, its bits."""

    cell: ExpandCell
    dense_bytes: int
    stored_bytes: int
    timings: tuple[DeviceTiming, ...]
    exact: dict[str, bool]
    failures: tuple[Failure, ...]

    @property
    def copy_bytes_per_second(self) -> float:
        """Read and written, by the faster copy of this cell."""
        return copy_bytes_per_second(self.timings)

    def share(self, timing: DeviceTiming) -> float:
        """Of the copy bandwidth: 1 is the limit."""
        return timing.bytes_per_second / self.copy_bytes_per_second

    def to_json(self) -> dict[str, Any]:
        """As JSON, with shares."""
        return asdict(self) | {
            "cell": asdict(self.cell) | {"shape": shape_name(self.cell.shape)},
            "copy_bytes_per_second": self.copy_bytes_per_second,
            "timings": [timing.to_json() | {"copy_share": self.share(timing)} for timing in self.timings],
        }


@dataclass(frozen=True)
class DeviceExpandRecord:
    """All cases of a run, with what they were measured on."""

    settings: DeviceExpandSettings
    cases: tuple[DeviceExpandCase, ...]
    left_out: tuple[ExpandCell, ...]
    device: DeviceFacts
    environment: Environment

    @property
    def faults(self) -> tuple[str, ...]:
        """What failed or gave other bits, a line each."""
        return tuple(
            f"{case.cell}: {text}"
            for case in self.cases
            for text in (
                *(f"{each.contender} failed: {each.message}" for each in case.failures),
                *(f"{name} gives other bits" for name, exact in case.exact.items() if not exact),
            )
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return record_json("device expand", self)


def measure_device_expand(
    settings: DeviceExpandSettings,
    *,
    report: Callable[[str], None] = lambda what: None,
    keep: Callable[[DeviceExpandRecord], None] = lambda record: None,
) -> DeviceExpandRecord:
    """Measures every cell on the default device, as long as there is time.

    keep: called after every cell with what there is by then. Raises OptionError for a codec or dtype that
    cannot be.
    """
    for cell in settings.cells:
        parse_codec(cell.codec)
    settings = replace(settings, implementations=settings.implementations or device_implementations())
    device, surroundings = device_facts(), environment()
    copies = copy_programs()
    walk = Walk(settings.cells, CELL_SECONDS, settings.limit_seconds, report)
    record = DeviceExpandRecord(settings, (), (), device, surroundings)
    for cell in walk:
        case = expand_case(settings, cell, copies=copies, cache_bytes=device.cache_bytes)
        record = DeviceExpandRecord(settings, (*record.cases, case), walk.left_out, device, surroundings)
        keep(record)
    return DeviceExpandRecord(settings, record.cases, walk.left_out, device, surroundings)


def expand_case(
    settings: DeviceExpandSettings, cell: ExpandCell, *, copies: Sequence[Program], cache_bytes: int
) -> DeviceExpandCase:
    """One cell beside the copies."""
    matrix = device_matrix(cell.shape, codec=cell.codec, sparsity=cell.sparsity, dtype=settings.dtype)
    moved = matrix.stored_bytes + matrix.dense_bytes
    words = words_on_device(matrix, cache_bytes, moved_bytes=moved)
    outputs = Outputs(matrix, len(words))
    programs: list[Program] = list(copies)
    failures: list[Failure] = []
    for name in settings.implementations:
        made = attempt(name, expand_program, name, matrix, words, outputs)
        if isinstance(made, Failure):
            failures.append(made)
            outputs.renew()
        else:
            programs.append(made)
    timings = time_programs(programs, seconds=settings.seconds)
    exact = {program.name: outputs.right_after(program) for program in programs[len(copies) :]}
    return DeviceExpandCase(cell, matrix.dense_bytes, matrix.stored_bytes, timings, exact, tuple(failures))


class Outputs:
    """Dense matrices on the device that every program of a cell writes again: the memory is made once."""

    def __init__(self, matrix: DeviceMatrix, count: int):
        self._matrix, self._count = matrix, count
        self.arrays = self._made()

    def renew(self) -> None:
        """After a program that failed, and may have taken them with it."""
        if any(array.is_deleted() for array in self.arrays):
            self.arrays = self._made()

    def _made(self) -> tuple[jax.Array, ...]:
        dtype = dtype_from_name(self._matrix.tensor.dtype)
        return tuple(jnp.zeros(self._matrix.tensor.shape, dtype) for _ in range(self._count))

    def right_after(self, program: Program) -> bool:
        """Whether all of them are the matrix, bit for bit, once it has run."""
        self.arrays = tuple(_poisoned(array) for array in self.arrays)
        program.start()
        expected = jnp.asarray(self._matrix.dense)
        return all(bool(_same_bits(array, expected)) for array in self.arrays)


def expand_program(
    name: Implementation, matrix: DeviceMatrix, words: tuple[jax.Array, ...], outputs: Outputs
) -> Program:
    """Expands all copies with one implementation, into `outputs`."""
    layout = matrix.tensor.layout

    def expanded(words: tuple[jax.Array, ...], before: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        del before  # their memory is taken
        return tuple(_expanded(each, layout, name) for each in words)

    run, seconds = compiled(expanded, words, outputs.arrays, donate=1)

    def start() -> tuple[jax.Array, ...]:
        outputs.arrays = run(words, outputs.arrays)
        return outputs.arrays

    return Program(name, matrix.stored_bytes + matrix.dense_bytes, len(words), seconds, start)


def _expanded(words: jax.Array, layout: TensorLayout, name: Implementation) -> jax.Array:
    tensor = SparseTensor((words,), layout)
    if name == "mosaic":  # refused by name until a record of a device shows it to be right: this one may
        return mosaic.expand(tensor)
    return expand(tensor, implementation=name)


@jax.jit
def _poisoned(array: jax.Array) -> jax.Array:
    """The same shape, all bits set: what a program does not write is seen."""
    bits = FLOAT_FORMATS[array.dtype.name].unsigned
    ones = jnp.full(array.shape, np.iinfo(bits).max, bits)
    return jax.lax.bitcast_convert_type(ones, array.dtype)


@jax.jit
def _same_bits(array: jax.Array, expected: jax.Array) -> jax.Array:
    bits = FLOAT_FORMATS[array.dtype.name].unsigned
    first, second = (jax.lax.bitcast_convert_type(each, bits) for each in (array, expected))
    return (first == second).all()
