"""Passes over a model, whole or stage by stage: what `bench stream` times.

Every pass is the same: a token of each sequence, at one position. The weights may be read, transferred and
computed with at once, one after another, or each alone.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from endor_jax import models
from endor_jax.bench.race import quartiles
from endor_jax.format.record import Record
from endor_jax.generate.loading import make_runner
from endor_jax.generate.placement import Geometry, fixed_costs, geometry, pass_records
from endor_jax.generate.runner import Feed, Runner, advance
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.devices import Devices, one_device
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.plan import DEPTH, FixedCosts, Plan, Tier
from endor_jax.streaming.prefetch import Prefetcher
from endor_jax.streaming.ring import Ring
from endor_jax.streaming.schedule import Action, Schedule
from endor_jax.streaming.streamable import Streamable
from endor_jax.streaming.timeline import Timeline
from endor_jax.streaming.transfer import shares_memory

CONTEXT = 64
"""Positions of the cache that are asked for; attention looks at what is filled."""
POSITION, TOKEN = 31, 100
"""Of the token in every pass."""


@dataclass(frozen=True)
class Passes:
    """seconds: of each pass. processor_seconds: that all threads worked for each."""

    seconds: tuple[float, ...]
    processor_seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        """Of all samples."""
        return statistics.median(self.seconds)

    @property
    def quartile_seconds(self) -> tuple[float, float]:
        """Between these lies the middle half of the samples."""
        return quartiles(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """As JSON, with what follows from the samples."""
        return asdict(self) | {
            "median_seconds": self.median_seconds,
            "quartile_seconds": self.quartile_seconds,
        }

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.seconds + other.seconds, self.processor_seconds + other.processor_seconds)


def time_passes(one_pass: Callable[[], object], count: int) -> Passes:
    """`count` passes, after one that is not counted: before it, what reads ahead had time to."""
    one_pass()
    seconds, processors = [], []
    for _ in range(count):
        wall, processor = time.perf_counter(), time.process_time()
        one_pass()
        seconds.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return Passes(tuple(seconds), tuple(processors))


def geometry_of(checkpoint: Checkpoint, sequences: int, *, devices: int = 1) -> Geometry:
    """Of passes with so many sequences, over so many devices."""
    config = models.decoder(models.from_hf(checkpoint.model_config())).config
    dtype = checkpoint.manifest.layout(checkpoint.manifest.record("embedding"))["weight"].dtype
    return geometry(config, dtype, min(CONTEXT, config.max_positions), sequences, devices=devices)


def plan_in_tier(
    checkpoint: Checkpoint, tier: Tier, *, sequences: int = 1, devices: Devices | None = None
) -> Plan:
    """The plan with every record of a pass in one tier, whatever that takes. devices: the first, if none."""
    on = one_device(default_device()) if devices is None else devices
    shares, share = shares_memory(on.first), on.share
    manifest, reads = checkpoint.manifest, checkpoint.reader_choice.reads
    demands = tuple(record.demand for record in pass_records(manifest, share))
    shape = geometry_of(checkpoint, sequences, devices=on.count)
    costs = fixed_costs(manifest, shape, shares_memory=shares, share=share)
    tiers = (tier,) * len(demands)
    return Plan(demands, tiers, costs, DEPTH, 0, 0, shares, reads, devices=len(on.own))


def one_after_another(plan: Plan) -> Schedule:
    """The schedule without overlap: all is done with a record before the next is read."""
    actions: list[Action] = []
    for record, tier in enumerate(plan.tiers):
        if tier == "disk":
            actions.append(Action("read", record))
        if tier != "device":
            actions.append(Action("put", record))
        actions += [Action("step", record), Action("release", record)]
    return Schedule((), tuple(actions))


@contextmanager
def computing(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    sequences: int,
    schedule: Schedule | None = None,
    timeline: Timeline | None = None,
) -> Iterator[Callable[[], object]]:
    """Passes that compute. Raises what loading raises."""
    with open_runner(checkpoint, plan, sequences, schedule=schedule, timeline=timeline) as runner:
        yield token_pass(runner, sequences)


def token_pass(runner: Runner, sequences: int) -> Callable[[], object]:
    """A pass with a token of each of so many sequences, all at one position."""
    caches = runner.new_caches(sequences)
    feeds = [Feed(row, [TOKEN], min(POSITION, runner.shape.context - 1)) for row in range(sequences)]
    return lambda: advance(runner, caches, feeds)


@contextmanager
def open_runner(
    checkpoint: Checkpoint,
    plan: Plan,
    sequences: int,
    *,
    schedule: Schedule | None = None,
    timeline: Timeline | None = None,
    devices: Devices | None = None,
) -> Iterator[Runner]:
    """A model placed by this plan. devices: as in the plan."""
    on = one_device(default_device()) if devices is None else devices
    runner = make_runner(
        checkpoint,
        models.decoder(models.from_hf(checkpoint.model_config())),
        geometry_of(checkpoint, sequences, devices=on.count),
        plan=plan,
        devices=on,
        timeline=timeline,
        schedule=schedule,
    )
    try:
        yield runner
    finally:
        runner.close()


def plan_of_records(checkpoint: Checkpoint) -> Plan:
    """The plan with every record of a checkpoint on disk, for passes that compute nothing."""
    demands = tuple(record.demand for record in stored_records(checkpoint))
    shares, reads = shares_memory(default_device()), checkpoint.reader_choice.reads
    return Plan(demands, ("disk",) * len(demands), FixedCosts(), DEPTH, 0, 0, shares, reads)


def stored_records(checkpoint: Checkpoint) -> list[Streamable]:
    """All records as they are stored."""
    manifest = checkpoint.manifest
    return [Streamable(record.name, record.parts, manifest.layout(record)) for record in manifest.records]


@contextmanager
def moving(
    checkpoint: Checkpoint, records: Sequence[Streamable], plan: Plan
) -> Iterator[Callable[[], object]]:
    """Passes whose steps compute nothing: records are read and transferred only."""
    executor = Executor(checkpoint, records, plan=plan, devices=one_device(default_device()))

    def step(index: int, record: Record) -> object:
        return record.words

    try:
        yield lambda: executor.run(step)
    finally:
        executor.close()


@contextmanager
def reading(checkpoint: Checkpoint, plan: Plan) -> Iterator[Callable[[], object]]:
    """Passes that read only: as many reads at once as the plan has, into as large a ring."""
    records = [pass_records(checkpoint.manifest)[i] for i in plan.read]
    ring = Ring(plan.slots, plan.slot_bytes)
    prefetcher = Prefetcher(
        lambda record, part, slot: checkpoint.read_part(part, into=slot), reads=plan.reads
    )
    following = itertools.cycle(records)

    def ask() -> None:
        record = next(following)
        prefetcher.request(record.name, record.parts, tuple(ring.acquire() for _ in record.parts))

    def one_pass() -> None:
        for _ in records:
            for slot in prefetcher.take():
                ring.release(slot)
            ask()

    try:
        for _ in range(plan.ring_records):
            ask()
        yield one_pass
    finally:
        prefetcher.close()
        ring.close()
