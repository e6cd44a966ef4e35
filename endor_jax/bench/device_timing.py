"""How a program on a device is timed: many matrices per program, many programs per sample.

A *program* is one compiled computation that works on distinct matrices in turn; a *sample* issues it several
times and waits for the last. So the time that Python and the driver take to issue work runs beside the work,
and is in the sample only where it is longer: it is measured too, as `issue_seconds`.

- No cache holds what is read next: the matrices of a program total at least four times the last-level cache.
- Nothing is optimised away: everything a program computes is among its results. Nothing is shared: every
  matrix is an argument of its own, and so is the x it is multiplied with (with one x XLA merges 40 products
  into one kernel; seen in what it compiles for an H200).
- Nothing overlaps unfairly: a device's work is done in the order in which it is issued, on one stream, so
  programs follow each other; at most the end of a kernel overlaps the start of the next, for all alike.
- Compilation is apart, and every contender runs once before the first sample. Contenders take turns, so that
  what disturbs a device hits all alike. All samples are kept.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from endor_jax.bench.race import Timing

ROUNDS = 20
LEAST_ROUNDS = 5
"""Rounds that a contender takes part in even when its time is over."""
SAMPLE_SECONDS = 0.005
"""So long a sample should take at least."""
MOST_CALLS = 16
"""Of a program per sample: more than this are not always issued before the first is done."""
PROGRAM_BYTES = 2**30
"""So much a program should move at least: 0.25 ms at 4 TB/s, longer than it takes to issue it."""


@dataclass(frozen=True)
class Program:
    """Compiled work on `matrices` distinct matrices in turn. bytes: read and written for each.

    start: issues it once; gives arrays that are ready when it is done.
    """

    name: str
    bytes: int
    matrices: int
    compile_seconds: float
    start: Callable[[], Any]


@dataclass(frozen=True)
class DeviceTiming(Timing):
    """What a program took, per matrix. first_seconds: to compile it. calls: of the program, per sample.

    issue_seconds: per matrix, until a sample was issued; as many as there are samples.
    """

    calls: int
    issue_seconds: tuple[float, ...]

    @property
    def issue_share(self) -> float:
        """Of the time: near 1 where issuing, and not the device, may be what was measured."""
        return statistics.median(self.issue_seconds) / self.median_seconds

    def to_json(self) -> dict[str, Any]:
        """As JSON, with what follows from the samples."""
        rounded = [round(sample, 12) for sample in self.issue_seconds]
        return super().to_json() | {
            "seconds": [round(sample, 12) for sample in self.seconds],
            "issue_seconds": rounded,
            "issue_share": self.issue_share,
        }


def matrices_of(cache_bytes: int, *, matrix_bytes: int, moved_bytes: int) -> int:
    """Distinct matrices of a program: four times the cache, PROGRAM_BYTES moved; two at least."""
    return max(2, -(-4 * cache_bytes // matrix_bytes), -(-PROGRAM_BYTES // moved_bytes))


def compiled(function: Callable[..., Any], *arguments: Any, donate: int | None = None) -> tuple[Any, float]:
    """The program of a function for these arguments, and the seconds it took to trace and compile it.

    donate: the argument whose memory the results take.
    """
    jitted = jax.jit(function, donate_argnums=() if donate is None else donate, keep_unused=True)
    start = time.perf_counter()
    program = jitted.lower(*arguments).compile()
    return program, time.perf_counter() - start


def time_programs(programs: Sequence[Program], *, seconds: float) -> tuple[DeviceTiming, ...]:
    """Samples of all programs in turns, each for about `seconds`; of a slow one LEAST_ROUNDS."""
    calls = [_calls(program) for program in programs]
    samples: list[list[tuple[float, float]]] = [[] for _ in programs]
    for number in range(ROUNDS):
        for program, count, kept in zip(programs, calls, samples, strict=True):
            if number < LEAST_ROUNDS or sum(done for done, _ in kept) < seconds:
                kept.append(_sample(program, count))
    return tuple(
        DeviceTiming(
            contender=program.name,
            bytes=program.bytes,
            matrices=program.matrices,
            first_seconds=program.compile_seconds,
            seconds=tuple(done / (count * program.matrices) for done, _ in kept),
            calls=count,
            issue_seconds=tuple(issued / (count * program.matrices) for _, issued in kept),
        )
        for program, count, kept in zip(programs, calls, samples, strict=True)
    )


def _calls(program: Program) -> int:
    """How many calls make a sample, by a second call: the first loads what was compiled."""
    _sample(program, 1)
    done, _ = _sample(program, 1)
    return min(MOST_CALLS, max(1, math.ceil(SAMPLE_SECONDS / max(done, 1e-9))))


def _sample(program: Program, calls: int) -> tuple[float, float]:
    """Seconds until so many calls were done, and until they were issued."""
    pending = None
    start = time.perf_counter()
    for _ in range(calls):
        pending = program.start()
    issued = time.perf_counter()
    jax.block_until_ready(pending)
    return time.perf_counter() - start, issued - start
