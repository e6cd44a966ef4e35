"""Which implementation runs: a pure function of what was asked for and of where the arrays are.

`resolve` never looks at the tier a record came from: the same shapes on the same device always take the same
implementation, so that residency cannot change a logit. A named implementation runs or raises. Every
implementation takes every dtype, codec and shape of the format, so none of them is asked about here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from endor_jax.errors import UnsupportedError

Implementation = Literal["xla", "triton", "mosaic", "cpu"]

TRITON_CAPABILITY = (8, 0)
"""Compute capability from which Triton compiles for a CUDA device: Ampere."""


@dataclass(frozen=True)
class Place:
    """Where arrays are, as far as the choice depends on it.

    platform: JAX's name ("cpu", "gpu", "tpu"). capability: of a CUDA device, (9, 0) for Hopper; None for any
    other. instruction_sets: those of the compiled extension on this machine (`native.instruction_sets()`),
    none if it was not built.
    """

    platform: str
    capability: tuple[int, int] | None = None
    instruction_sets: tuple[str, ...] = ()


def implementations(place: Place) -> tuple[Implementation, ...]:
    """What there is at this place, best first. A backend enters when its conformance suite passes.

    The extension's portable code alone is slower than XLA's: then it runs only when asked for. `mosaic` is
    nowhere yet: its conformance can only be seen on a device, and no record of one shows it.
    """
    if place.platform == "gpu" and place.capability is not None and place.capability >= TRITON_CAPABILITY:
        return ("triton", "xla")
    if place.platform != "cpu" or not place.instruction_sets:
        return ("xla",)
    return ("xla", "cpu") if place.instruction_sets == ("scalar",) else ("cpu", "xla")


def resolve(requested: Implementation | None, place: Place) -> Implementation:
    """The implementation to run on arrays at this place.

    `None` takes the first available. Raises UnsupportedError for a named one that the place lacks.
    """
    available = implementations(place)
    if requested is None:
        return available[0]
    if requested not in available:
        why, fix = _why_not(requested, place)
        raise UnsupportedError(
            "implementation",
            got=f"{requested!r} on {place.platform}{why}",
            expected=f"one of {', '.join(available)}",
            fix=fix,
        )
    return requested


def _why_not(requested: Implementation, place: Place) -> tuple[str, str]:
    """What to add to the name of an implementation that is not there, and what to do."""
    if requested == "mosaic":
        why = ": for Hopper it is written, and no record of a device has shown it to be right"
        return why, "leave it out to take the best one"
    if requested == "cpu" and place.platform == "cpu":
        return ", and it was not built", "install g++ and endor_jax again"
    if requested == "triton" and place.capability is not None:
        major, minor = place.capability
        needed = ".".join(map(str, TRITON_CAPABILITY))
        return f" of compute capability {major}.{minor}, below {needed}", "leave it out to take the best one"
    return "", "leave it out to take the best one"
