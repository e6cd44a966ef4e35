"""A race: contenders take turns in rounds, so that the noise of a machine hits all alike.

A turn goes once over the contender's matrices, which together are beyond the caches. Its first call wakes
threads and finds what the contender before left in the caches: it counts only where the turn has no second
one. Compilation is in the very first call, which is kept apart. Every other sample is kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ROUNDS = 12
SLOW_ROUNDS = 3
"""Rounds that a contender takes part in even when its time is over."""


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """Between these lies the middle half of some samples, of which there is one at least."""
    if len(samples) == 1:
        return samples[0], samples[0]
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return lower, upper


@dataclass(frozen=True)
class Contender:
    """Something that can be timed. bytes: that one call is rated by. matrices: distinct ones of `call`.

    call: called with the number of a matrix, returns when the work on it is done.
    """

    name: str
    bytes: int
    matrices: int
    call: Callable[[int], object]


@dataclass(frozen=True)
class Timing:
    """What a contender took. first_seconds: its first call, which compiles. seconds: of single calls."""

    contender: str
    bytes: int
    matrices: int
    first_seconds: float
    seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        """Of all samples."""
        return statistics.median(self.seconds)

    @property
    def bytes_per_second(self) -> float:
        """Bytes over the median."""
        return self.bytes / self.median_seconds

    @property
    def quartile_seconds(self) -> tuple[float, float]:
        """Between these lies the middle half of the samples."""
        return quartiles(self.seconds)

    @property
    def least_seconds(self) -> float:
        """Of all samples: what the machine does when nothing disturbs it."""
        return min(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """As JSON, with what follows from the samples."""
        return asdict(self) | {
            "first_seconds": round(self.first_seconds, 9),
            "seconds": [round(sample, 9) for sample in self.seconds],
            "median_seconds": self.median_seconds,
            "least_seconds": self.least_seconds,
            "quartile_seconds": self.quartile_seconds,
            "bytes_per_second": self.bytes_per_second,
        }


def race(contenders: Sequence[Contender], *, seconds: float) -> tuple[Timing, ...]:
    """Times all contenders, each for about `seconds`; a slow one takes longer, for SLOW_ROUNDS turns."""
    first = [_timed(contender, 0) for contender in contenders]
    samples: list[list[float]] = [[] for _ in contenders]
    for number in range(ROUNDS):
        for contender, kept in zip(contenders, samples, strict=True):
            if number < SLOW_ROUNDS or sum(kept) < seconds:
                kept.extend(_turn(contender, seconds / ROUNDS))
    return tuple(
        Timing(contender.name, contender.bytes, contender.matrices, once, tuple(kept))
        for contender, once, kept in zip(contenders, first, samples, strict=True)
    )


def _turn(contender: Contender, seconds: float) -> list[float]:
    """Samples of one turn: every matrix once, or as many as the time allows, and one more before."""
    first, rest = _timed(contender, 0), []
    spent = first
    for matrix in range(1, contender.matrices + 1):
        if spent >= seconds:
            break
        rest.append(_timed(contender, matrix % contender.matrices))
        spent += rest[-1]
    return rest or [first]


def _timed(contender: Contender, matrix: int) -> float:
    start = time.perf_counter()
    contender.call(matrix)
    return time.perf_counter() - start
