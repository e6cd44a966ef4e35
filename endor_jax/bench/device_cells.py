"""What a benchmark on a device goes through: cells, each measured by itself, for as long as there is time.

A machine with a GPU is often lent for minutes. So cells that matter most come first, what is measured is
handed over after every cell, no cell is begun that would take too long, and what is left out is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import jax

from endor_jax.bench.device_timing import Program

CellT = TypeVar("CellT")


@dataclass(frozen=True)
class Failure:
    """A contender that could not be compiled or run, and what it said. The others are measured."""

    contender: str
    message: str


def attempt(name: str, make: Callable[..., Program], *arguments: Any) -> Program | Failure:
    """A program that `make` gives and that has run once, or why not: a compiler may raise anything."""
    try:
        program = make(*arguments)
        jax.block_until_ready(program.start())
    except Exception as error:
        return Failure(name, f"{type(error).__name__}: {error}")
    return program


def record_json(benchmark: str, record: Any) -> dict[str, Any]:
    """As JSON, the record of a device benchmark. Its cells are those of its cases and those left out."""
    settings = asdict(record.settings)
    del settings["cells"]
    return {
        "benchmark": benchmark,
        "settings": settings,
        "cases": [case.to_json() for case in record.cases],
        "left_out": list(map(str, record.left_out)),
        "faults": record.faults,
        "device": asdict(record.device),
    } | asdict(record.environment)


@dataclass
class Walk(Generic[CellT]):
    """Cells in order, until all are done or the next would not fit into `limit_seconds`.

    expected_seconds: per cell, before any is measured; afterwards the mean of those that are. report: called
    with what is being done and how long the rest will take. left_out: the cells it has not come to.
    """

    cells: Sequence[CellT]
    expected_seconds: float
    limit_seconds: float | None
    report: Callable[[str], None]
    left_out: tuple[CellT, ...] = field(default=(), init=False)

    def __iter__(self) -> Iterator[CellT]:
        start = time.perf_counter()
        for number, cell in enumerate(self.cells):
            spent = time.perf_counter() - start
            each = spent / number if number else self.expected_seconds
            if self.limit_seconds is not None and number and spent + each > self.limit_seconds:
                self.left_out = tuple(self.cells[number:])
                self.report(f"{len(self.left_out)} cells left out: no more than {self.limit_seconds:.0f} s")
                return
            self.left_out = tuple(self.cells[number + 1 :])
            left = len(self.cells) - number
            self.report(f"{cell} ({number + 1} of {len(self.cells)}; about {left * each:.0f} s left)")
            yield cell
