"""Rates of this machine, measured on random data, never on a model's own, and remembered.

A product's time is a curve over the size of the matrix: small ones cost the waking of threads, large ones
what memory and arithmetic give. A curve is rated by what a matrix costs beyond a tiny one: what any
operation costs is in the time of a step (`generate/step_rates.py`).
"""

from __future__ import annotations

import bisect
import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from endor_jax import native
from endor_jax.memory import give_back
from endor_jax.processors import usable_cpus
from endor_jax.store.remembered import forget, recall, remember
from endor_jax.streaming.transfer import Device
from endor_jax.version import VERSION

METHOD = 1
"""Counted up whenever rates are measured otherwise: figures of another method are of no use."""
FILE = "rates.json"


@dataclass(frozen=True)
class Product:
    """A kind of product of x with a compressed matrix: codec and dtype of the matrix, dtypes, rows of x."""

    codec: str
    dtype: str
    x_dtype: str
    output_dtype: str
    rows: int

    @property
    def name(self) -> str:
        """What its curve is remembered under."""
        x = f"{self.rows} x {self.x_dtype}"
        return f"linear {self.codec} {self.dtype}, {x}, to {self.output_dtype}"


@dataclass(frozen=True)
class Curve:
    """Seconds of an operation by the number of weights, rising: at least two points."""

    points: tuple[tuple[int, float], ...]

    def seconds(self, weights: int) -> float:
        """Of an operation with so many weights, beyond one with those of the first point."""
        return max(self._at(weights) - self.points[0][1], 0.0)

    def _at(self, weights: int) -> float:
        """On the line through the points beside it, or through the first or last two."""
        right = bisect.bisect_left([point[0] for point in self.points], weights)
        right = min(max(right, 1), len(self.points) - 1)
        (first, low), (last, high) = self.points[right - 1 : right + 1]
        return low + (high - low) * (weights - first) / (last - first)

    @property
    def per_second(self) -> float:
        """Weights per second of large matrices: between the last two points."""
        (first, low), (last, high) = self.points[-2:]
        return (last - first) / max(high - low, 1e-12)


def machine(device: Device) -> str:
    """What rates are good for: this host, device, versions, instruction sets and threads."""
    sets = " ".join(native.instruction_sets())
    return (
        f"method {METHOD}, {socket.gethostname()}, {device.device_kind} ({device.platform}), "
        f"endor_jax {VERSION}, jax {jax.__version__}, {sets or 'no extension'}, {len(usable_cpus())} threads"
    )


def forget_rates(device: Device) -> None:
    """Has everything measured again that is wanted of this machine: of products, steps and memory."""
    forget(FILE, machine(device))


def remembered(
    device: Device, name: str, measure: Callable[[], Sequence[float]], *, anew: bool = False
) -> tuple[float, ...]:
    """The positive figures of that name for this machine: those that were kept, or else measured now.

    anew: measures whatever was kept.
    """
    key = f"{machine(device)}: {name}"
    if not anew:
        kept = figures(recall(FILE, key))
        if kept is not None:
            return kept
    measured = tuple(map(float, measure()))
    give_back()
    remember(FILE, {key: measured})
    return measured


def figures(kept: object) -> tuple[float, ...] | None:
    """A JSON value as figures; None unless it is a list of positive finite numbers."""
    if not isinstance(kept, list) or not kept:
        return None
    try:
        values = tuple(map(float, kept))
    except (ValueError, TypeError, OverflowError):
        return None
    return values if all(math.isfinite(value) and value > 0 for value in values) else None
