"""The plan: which record lives in which tier, and what that takes. A value, made before anything is loaded.

Tiers, all holding compressed bytes: `device` (resident, read once), `host` (kept in host memory, transferred
every pass), `disk` (read and transferred every pass). The resident set is spread evenly over the layers, so
that streamed ones are evenly spaced: a pass is cyclic, so any least-recently-used scheme would always evict
what is needed next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from endor_jax.errors import DoesNotFitError
from endor_jax.streaming.sizes import format_size

Tier = Literal["device", "host", "disk"]

DEPTH = 2
"""Records whose transfer is issued ahead of the step that runs (docs/design.md: put(i+2), then step(i))."""


@dataclass(frozen=True)
class Demand:
    """What one record of the pass needs.

    read_bytes: its parts on disk; buffer_bytes: its buffers on the device, padded to size classes;
    parts: how many; slot_bytes: its largest part buffer; host_held: already in host memory for another
    purpose (a tied head), so that keeping it there costs nothing.
    """

    name: str
    read_bytes: int
    buffer_bytes: int
    parts: int
    slot_bytes: int
    host_held: bool = False


@dataclass(frozen=True)
class FixedCosts:
    """Memory that is needed whatever the tiers are, by name: bytes on the device and on the host."""

    device: tuple[tuple[str, int], ...] = ()
    host: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Plan:
    """Tiers of all records of a pass, in order, and the memory they take. `repr` is a table."""

    demands: tuple[Demand, ...]
    tiers: tuple[Tier, ...]
    fixed: FixedCosts
    depth: int
    device_budget_bytes: int
    host_budget_bytes: int

    def _of(self, *tiers: Tier) -> list[Demand]:
        return [demand for demand, tier in zip(self.demands, self.tiers, strict=True) if tier in tiers]

    @property
    def streamed(self) -> tuple[int, ...]:
        """Indices of the records that are transferred every pass."""
        return tuple(i for i, tier in enumerate(self.tiers) if tier != "device")

    @property
    def resident_bytes(self) -> int:
        """Device bytes of records that stay there."""
        return sum(demand.buffer_bytes for demand in self._of("device"))

    @property
    def stream_buffer_bytes(self) -> int:
        """Device bytes of streamed records that are alive at once: depth ahead, the running and the last one."""
        return _stream_buffers(self._of("host", "disk"), self.depth)

    @property
    def slots(self) -> int:
        """Slots of the host ring: parts in transfer and parts being read."""
        return ring_slots(self._of("disk"), self.depth)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: the largest part that is read from disk."""
        return max((demand.slot_bytes for demand in self._of("disk")), default=0)

    @property
    def host_kept_bytes(self) -> int:
        """Host bytes of records kept there for the passes."""
        return sum(demand.buffer_bytes for demand in self._of("host") if not demand.host_held)

    @property
    def device_bytes(self) -> int:
        """Peak device bytes."""
        return sum(size for _, size in self.fixed.device) + self.resident_bytes + self.stream_buffer_bytes

    @property
    def host_bytes(self) -> int:
        """Peak host bytes of weights."""
        return sum(size for _, size in self.fixed.host) + self.host_kept_bytes + self.slots * self.slot_bytes

    @property
    def read_bytes_per_pass(self) -> int:
        """Bytes read from disk for every pass over the layers: for one token, or one whole prompt."""
        return sum(demand.read_bytes for demand in self._of("disk"))

    @property
    def transferred_bytes_per_pass(self) -> int:
        """Bytes moved from host to device for every pass."""
        return sum(demand.buffer_bytes for demand in self._of("host", "disk"))

    def count(self, tier: Tier) -> int:
        """How many records live in a tier."""
        return self.tiers.count(tier)

    @property
    def fits(self) -> bool:
        """Whether both budgets hold what is planned; a limit accepts a request equal to it."""
        return self.device_bytes <= self.device_budget_bytes and self.host_bytes <= self.host_budget_bytes

    def __repr__(self) -> str:
        lines = [
            f"records      {self.count('device')} on the device, {self.count('host')} in host memory, "
            f"{self.count('disk')} on disk",
            f"per pass     {format_size(self.read_bytes_per_pass)} read, "
            f"{format_size(self.transferred_bytes_per_pass)} transferred",
            f"device       {format_size(self.device_bytes)} of {format_size(self.device_budget_bytes)}",
        ]
        device = [*self.fixed.device, ("resident records", self.resident_bytes)]
        device += [("stream buffers", self.stream_buffer_bytes)]
        lines += [f"  {name:<20}{format_size(size)}" for name, size in device if size]
        lines += [f"host         {format_size(self.host_bytes)} of {format_size(self.host_budget_bytes)}"]
        host = [*self.fixed.host, ("kept records", self.host_kept_bytes)]
        host += [(f"ring of {self.slots} slots", self.slots * self.slot_bytes)]
        lines += [f"  {name:<20}{format_size(size)}" for name, size in host if size]
        return "\n".join(lines)


def make_plan(
    demands: Sequence[Demand],
    *,
    fixed: FixedCosts,
    device_budget_bytes: int,
    host_budget_bytes: int,
    depth: int = DEPTH,
) -> Plan:
    """Fills the device, then host memory, and leaves the rest on disk.

    Raises DoesNotFitError, with the smallest possible plan in its text, if even that exceeds a budget.
    """

    def plan(tiers: Sequence[Tier]) -> Plan:
        return Plan(tuple(demands), tuple(tiers), fixed, depth, device_budget_bytes, host_budget_bytes)

    def with_device(residents: Sequence[int], rest: Tier) -> Plan:
        return plan(["device" if i in residents else rest for i in range(len(demands))])

    # The device is filled first, as if host memory were free; then host memory for what is left.
    everything = range(len(demands))
    residents = _largest_spread(
        everything,
        lambda chosen: with_device(chosen, "host").device_bytes <= device_budget_bytes,
    )
    free = [i for i in everything if i not in residents and demands[i].host_held]
    rest = [i for i in everything if i not in residents and not demands[i].host_held]

    def with_host(kept: Sequence[int]) -> Plan:
        place: dict[int, Tier] = dict.fromkeys(residents, "device") | dict.fromkeys([*kept, *free], "host")
        return plan([place.get(i, "disk") for i in everything])

    best = with_host(_largest_spread(rest, lambda chosen: with_host(chosen).host_bytes <= host_budget_bytes))
    if best.fits:
        return best
    short = "device" if best.device_bytes > device_budget_bytes else "host"
    need = best.device_bytes if short == "device" else best.host_bytes
    budget = device_budget_bytes if short == "device" else host_budget_bytes
    raise DoesNotFitError(
        f"plan for {len(demands)} records",
        got=f"{format_size(budget)} of {short} memory",
        expected=f"at least {format_size(need)}",
        fix=f"raise --{short}-memory. The smallest plan:\n{best!r}",
    )


def spread(indices: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of the indices, evenly spaced."""
    total = len(indices)
    return tuple(index for i, index in enumerate(indices) if (i + 1) * count // total > i * count // total)


def _largest_spread(indices: Sequence[int], fits: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    """The largest evenly spaced subset that fits; empty if none does."""
    sets = (spread(indices, count) for count in range(len(indices), 0, -1))
    return next((chosen for chosen in sets if fits(chosen)), ())


def ring_slots(read: Sequence[Demand], depth: int) -> int:
    """Slots for `depth` records in transfer and two being read."""
    return (depth + 2) * max((demand.parts for demand in read), default=0)


def _stream_buffers(streamed: Sequence[Demand], depth: int) -> int:
    alive = min(depth + 2, 2 * len(streamed))
    return alive * max((demand.buffer_bytes for demand in streamed), default=0)
