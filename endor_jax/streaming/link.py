"""Which way parts travel to a device: decided by a pure function from what was measured on it, or by name.

The link is used twice: for parts just read into the ring, and for parts kept in host memory. Where device and
host share memory there is one way, `shared`, and nothing to measure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from endor_jax.errors import OptionError, UnsupportedError
from endor_jax.streaming.link_rates import Measured, link_rates
from endor_jax.streaming.memory_pools import check_pinned_pool, pinned_pool_bytes
from endor_jax.streaming.transfer import WAYS, Device, Way, shares_memory

WORTH = 0.95
"""A simpler way is taken if it has this share of the fastest one's rate: pinned memory is others' loss."""


@dataclass(frozen=True)
class Link:
    """How parts travel: from the ring, and from the host tier; why so; and what was measured."""

    ring: Way
    kept: Way
    why: str
    measured: Measured = field(default_factory=Measured)

    @property
    def staged(self) -> bool:
        """Whether parts are copied into pinned memory of JAX's own first, all or some of them."""
        return self.ring in ("pageable", "pinned_host") or self.kept == "pageable"

    @property
    def ring_bytes_per_second(self) -> float | None:
        """None where nothing is moved."""
        return None if self.ring == "shared" else self.measured.rates[self.ring].ring

    @property
    def kept_bytes_per_second(self) -> float | None:
        """None where nothing is moved."""
        return None if self.kept == "shared" else self.measured.rates[self.kept].kept


SHARED = Link("shared", "shared", "device and host are one memory: nothing is moved")


def choose_link(device: Device, *, way: str | None = None, kept_bytes: int = 0, anew: bool = False) -> Link:
    """How parts travel to a device.

    way: one by name, for ring and host tier; by default the fastest. kept_bytes: of the host tier. anew:
    measures whatever is remembered (`link_rates`). Raises what `choose` raises.
    """
    if not shares_memory(device):
        measured, pool_bytes = link_rates(device, anew=anew), pinned_pool_bytes(os.environ)
        return choose(measured, way=way, kept_bytes=kept_bytes, pool_bytes=pool_bytes)
    if way in (None, "shared"):
        return SHARED
    raise _not_to_be_had(way, "device and host are one memory" if way in WAYS else None, ("shared",))


def choose(
    measured: Measured, *, way: str | None = None, kept_bytes: int = 0, pool_bytes: int | None = None
) -> Link:
    """The fastest ways, or simpler ones that are nearly as fast; or the one that is asked for by name.

    measured: must have a rate for "pageable". kept_bytes: of the host tier; where they exceed `pool_bytes`,
    what JAX has of pinned host memory, they are not kept there, and `why` says so. Raises DoesNotFitError if
    they exceed it and were asked to be there, UnsupportedError for a way that was refused on this machine,
    OptionError if there is none of that name.
    """
    if way is not None:
        return _named(way, measured, kept_bytes=kept_bytes, pool_bytes=pool_bytes)
    from_ring: dict[Way, float] = {way: rates.ring for way, rates in measured.rates.items()}
    ring, ring_why = _fastest(from_ring)
    candidates: dict[Way, float] = {way: rates.kept for way, rates in measured.rates.items()}
    too_large = pool_bytes is not None and kept_bytes > pool_bytes and "pinned_host" in candidates
    if too_large:
        del candidates["pinned_host"]
    kept, kept_why = _fastest(candidates)
    why = f"ring: {ring_why}; host tier: {kept_why}"
    if too_large:
        why += f" (its {kept_bytes:,} bytes exceed JAX's pool of pinned host memory, {pool_bytes:,})"
    return Link(ring, kept, why, measured)


def _fastest(rates: Mapping[Way, float]) -> tuple[Way, str]:
    """The simplest way that is nearly as fast as the fastest, and what speaks for it."""
    best = max(rates.values())
    way: Way = next(way for way in WAYS if way in rates and rates[way] >= WORTH * best)
    if way == "pageable":
        return way, "no way is faster than pageable"
    return way, f"{way} is {rates[way] / rates['pageable']:.1f} times as fast as pageable"


def _named(way: str, measured: Measured, *, kept_bytes: int, pool_bytes: int | None) -> Link:
    for known in WAYS:
        if known == way and known in measured.rates:
            if known == "pinned_host" and pool_bytes is not None:
                check_pinned_pool(kept_bytes, pool_bytes)
            return Link(known, known, "asked for by name", measured)
    reasons = {"shared": "device and host are two memories", **measured.refused}
    raise _not_to_be_had(way, reasons.get(way), tuple(measured.rates))


def _not_to_be_had(
    way: str | None, reason: str | None, possible: tuple[str, ...]
) -> OptionError | UnsupportedError:
    """The error for a way asked for by name; without a reason there is none of that name."""
    kind = OptionError if reason is None and way not in WAYS else UnsupportedError
    return kind(
        "way to the device",
        got=repr(way) + (f", and {reason}" if reason else ""),
        expected=" or ".join(possible),
        fix="leave it out to have it chosen",
    )
