"""The plan: which record lives in which tier, and what that takes. A value, made before anything is loaded.

Tiers, all holding compressed bytes: `device` (resident, read once), `host` (kept in host memory, transferred
every pass), `disk` (read and transferred every pass). The resident set is spread evenly over the layers, so
that streamed ones are evenly spaced: a pass is cyclic, so any least-recently-used scheme would always evict
what is needed next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from endor_jax.errors import DoesNotFitError, InvalidInputError
from endor_jax.streaming.sizes import format_size

Tier = Literal["device", "host", "disk"]

DEPTH = 2
"""Records whose transfer is issued ahead of the step that runs (docs/design.md: put(i+2), then step(i))."""
READS = 2
"""Reads in flight where nothing was measured: one thread reads while the other verifies."""
QUEUED = 1
"""Records that wait for a reader, or one that is done would idle until the schedule's thread asks for more:
on a busy machine with two cores a pass from disk took 1.09 to 1.40 times as long as reading alone without,
1.04 to 1.06 times with."""


@dataclass(frozen=True)
class Demand:
    """What one record of the pass needs.

    read_bytes: its parts on disk; buffer_bytes: its buffers on each device, padded to size classes;
    parts: how many; slot_bytes: its largest part buffer. Where several devices share a record, parts and
    bytes on disk are those of all devices of this process.
    """

    name: str
    read_bytes: int
    buffer_bytes: int
    parts: int
    slot_bytes: int


@dataclass(frozen=True)
class FixedCosts:
    """Memory that is needed whatever the tiers are, by name: bytes on the device and on the host."""

    device: tuple[tuple[str, int], ...] = ()
    host: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Plan:
    """Tiers of all records of a pass, in order, and the memory they take. `repr` is a table.

    depth: records whose transfer is issued ahead. reads: records that are being read at a time. queued: those
    that wait for that. shares_memory: device and host are one memory, so records are used where they were
    read. staged: on their way to the device they are copied into pinned memory of JAX's own first. devices:
    those of this process; bytes on the device are those on each of them.
    """

    demands: tuple[Demand, ...]
    tiers: tuple[Tier, ...]
    fixed: FixedCosts
    depth: int
    device_budget_bytes: int
    host_budget_bytes: int
    shares_memory: bool = False
    reads: int = READS
    staged: bool = False
    queued: int = QUEUED
    devices: int = 1

    def _of(self, *tiers: Tier) -> list[Demand]:
        return [demand for demand, tier in zip(self.demands, self.tiers, strict=True) if tier in tiers]

    @property
    def streamed(self) -> tuple[int, ...]:
        """Indices of the records that are transferred every pass."""
        return tuple(i for i, tier in enumerate(self.tiers) if tier != "device")

    @property
    def read(self) -> tuple[int, ...]:
        """Indices of the records that are read from disk every pass."""
        return tuple(i for i, tier in enumerate(self.tiers) if tier == "disk")

    @property
    def resident_bytes(self) -> int:
        """Bytes of records that stay there, on each device."""
        return sum(demand.buffer_bytes for demand in self._of("device"))

    @property
    def stream_buffer_bytes(self) -> int:
        """Device bytes of streamed records alive at once: `depth` ahead, the running and the last one."""
        return 0 if self.shares_memory else _stream_buffers(self._of("host", "disk"), self.depth)

    @property
    def ring_records(self) -> int:
        """Records that the host ring holds: those issued ahead, those being read, and those that wait for it.

        Where the device works in the ring itself, the one before the one that runs too: it is waited for only
        when the next step is issued. See `make_schedule`, which needs no more.
        """
        read = len(self.read)
        under_way = min(self.depth, read) + min(self.reads + self.queued, read)
        return under_way + self.shares_memory if read else 0

    @property
    def slots(self) -> int:
        """Slots of the host ring."""
        return self.ring_records * max((demand.parts for demand in self._of("disk")), default=0)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: the largest part that is read from disk."""
        return max((demand.slot_bytes for demand in self._of("disk")), default=0)

    @property
    def host_kept_bytes(self) -> int:
        """Host bytes of records kept there for the passes."""
        return self.devices * sum(demand.buffer_bytes for demand in self._of("host"))

    @property
    def staging_bytes(self) -> int:
        """Host bytes of JAX's copies of records in transfer: one is issued before another is waited for."""
        largest = self.devices * max((demand.buffer_bytes for demand in self._of("host", "disk")), default=0)
        return min(self.depth + 1, len(self.streamed)) * largest if self.staged else 0

    @property
    def device_bytes(self) -> int:
        """Peak bytes on each device."""
        return sum(size for _, size in self.fixed.device) + self.resident_bytes + self.stream_buffer_bytes

    @property
    def host_bytes(self) -> int:
        """Peak host bytes of weights."""
        weights = self.host_kept_bytes + self.slots * self.slot_bytes + self.staging_bytes
        return sum(size for _, size in self.fixed.host) + weights

    @property
    def read_bytes_per_pass(self) -> int:
        """Bytes read from disk for every pass over the layers: for one token, or one whole prompt."""
        return sum(demand.read_bytes for demand in self._of("disk"))

    @property
    def transferred_bytes_per_pass(self) -> int:
        """Bytes moved from host memory to this process's devices for every pass."""
        return self.devices * sum(demand.buffer_bytes for demand in self._of("host", "disk"))

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
            f"{self.count('disk')} on disk; {self.depth} issued ahead, {self.reads} being read",
            f"per pass     {format_size(self.read_bytes_per_pass)} read, "
            f"{format_size(self.transferred_bytes_per_pass)} transferred",
            f"device       {format_size(self.device_bytes)} of {format_size(self.device_budget_bytes)}"
            + (f", on each of {self.devices}" if self.devices > 1 else ""),
        ]
        device = [*self.fixed.device, ("resident records", self.resident_bytes)]
        device += [("stream buffers", self.stream_buffer_bytes)]
        lines += [f"  {name:<20}{format_size(size)}" for name, size in device if size]
        lines += [f"host         {format_size(self.host_bytes)} of {format_size(self.host_budget_bytes)}"]
        host = [*self.fixed.host, ("kept records", self.host_kept_bytes)]
        host += [(f"ring of {self.slots} slots", self.slots * self.slot_bytes)]
        host += [("staging", self.staging_bytes)]
        lines += [f"  {name:<20}{format_size(size)}" for name, size in host if size]
        return "\n".join(lines)


def make_plan(
    demands: Sequence[Demand],
    *,
    fixed: FixedCosts,
    device_budget_bytes: int,
    host_budget_bytes: int,
    depth: int | None = None,
    reads: int = READS,
    shares_memory: bool = False,
    staged: bool = False,
    devices: int = 1,
) -> Plan:
    """Fills the device, then host memory, and leaves the rest on disk.

    Of all evenly spread sets that fit, the one that moves the fewest bytes per pass. depth: by default
    `DEPTH`. reads: records being read at a time. Both are fewer where only that fits; a depth that is given
    stays.
    shares_memory, staged, devices: as `Plan` has them. Raises DoesNotFitError, with the smallest possible
    plan in its text, if even that exceeds a budget, and InvalidInputError for a depth or reads below 1.
    """
    for name, value in (("depth", depth), ("reads", reads)):
        if value is not None and value < 1:
            raise InvalidInputError(
                name, got=str(value), expected="at least 1", fix="leave it at its default"
            )
    tiers: tuple[Tier, ...] = ("disk",) * len(demands)
    budgets = device_budget_bytes, host_budget_bytes
    nothing = Plan(
        tuple(demands),
        tiers,
        fixed,
        depth or DEPTH,
        *budgets,
        shares_memory,
        reads,
        staged,
        devices=devices,
    )
    depths = range(DEPTH, 0, -1) if depth is None else (depth,)
    ways = [way for ahead in depths for way in ((ahead, reads, QUEUED), (ahead, 1, 0))]
    wished = replace(nothing, depth=ways[0][0], reads=reads, queued=QUEUED)
    plans = [_filled(replace(wished, depth=d, reads=r, queued=q), wished) for d, r, q in ways]
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        raise _does_not_fit(plans[-1])
    return fitting[0]


def _filled(nothing: Plan, wished: Plan) -> Plan:
    """The best plan of the same demands, budgets, depth and reads; one that does not fit if none does.

    wished: with the depth and the reads that are best. What fewer of them leave of host memory keeps no
    records: a little more memory would take them away again, and more memory must never read more.
    """
    everything = range(len(nothing.demands))

    def plan(device: Sequence[int], host: Sequence[int]) -> Plan:
        tiers: list[Tier] = list(nothing.tiers)
        for i in host:
            tiers[i] = "host"
        for i in device:
            tiers[i] = "device"
        return replace(nothing, tiers=tuple(tiers))

    # The device is filled first, as if host memory were free; then host memory for what is left.
    best = _choose(
        (plan(spread(everything, count), everything) for count in range(len(everything) + 1)),
        takes=lambda plan: plan.device_bytes,
        budget_bytes=nothing.device_budget_bytes,
        moves=lambda plan: plan.transferred_bytes_per_pass,
    )
    residents = [i for i in everything if best.tiers[i] == "device"]
    rest = best.streamed
    plans = [plan(residents, spread(rest, count)) for count in range(len(rest) + 1)]

    def takes(plan: Plan) -> int:
        return replace(plan, depth=wished.depth, reads=wished.reads, queued=wished.queued).host_bytes

    fitting = [plan for plan in plans if takes(plan) <= nothing.host_budget_bytes]
    if fitting:
        return min(fitting, key=lambda plan: plan.read_bytes_per_pass)
    return min(plans[0], plans[-1], key=lambda plan: plan.host_bytes)


def _choose(
    plans: Iterable[Plan],
    *,
    takes: Callable[[Plan], int],
    budget_bytes: int,
    moves: Callable[[Plan], int],
) -> Plan:
    """Of the plans that take no more than the budget, the one that moves least; if none, the smallest."""
    candidates = tuple(plans)
    fitting = [plan for plan in candidates if takes(plan) <= budget_bytes]
    return min(fitting, key=moves) if fitting else min(candidates, key=takes)


def _does_not_fit(smallest: Plan) -> DoesNotFitError:
    short, need, budget = "device", smallest.device_bytes, smallest.device_budget_bytes
    if need <= budget:
        short, need, budget = "host", smallest.host_bytes, smallest.host_budget_bytes
    return DoesNotFitError(
        f"plan for {len(smallest.demands)} records",
        got=f"{format_size(budget)} of {short} memory",
        expected=f"at least {format_size(need)} ({need:,} bytes)",
        fix=f"raise {short}_memory (--{short}-memory). The smallest plan:\n{smallest!r}",
    )


def spread(indices: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` of the indices, evenly spaced."""
    total = len(indices)
    return tuple(index for i, index in enumerate(indices) if (i + 1) * count // total > i * count // total)


def _stream_buffers(streamed: Sequence[Demand], depth: int) -> int:
    alive = min(depth + 2, 2 * len(streamed))
    return alive * max((demand.buffer_bytes for demand in streamed), default=0)
