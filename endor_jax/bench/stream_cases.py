"""One store and a number of sequences: the streaming loop, each of its stages alone, and other ways beside.

The stages work at the same time, so no loop is faster than the slowest of them alone. Where the device is the
processor, reading takes processor time from computing: the work of all stages over all processors is a limit
too, and the larger one on a page cache, which is read by copying.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endor_jax.bench.slow_store import SlowCheckpoint
from endor_jax.bench.stream_passes import (
    Passes,
    computing,
    moving,
    one_after_another,
    plan_in_tier,
    plan_of_records,
    reading,
    stored_records,
    time_passes,
)
from endor_jax.generate.placement import pass_records
from endor_jax.processors import usable_cpus
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.plan import Plan, Tier
from endor_jax.streaming.timeline import Span, Stages, Timeline
from endor_jax.streaming.transfer import shares_memory

MAPPED = "mmap"
"""A mapped part is used where the page cache has it: there is no reading of it alone."""


@dataclass(frozen=True)
class Store:
    """Where weights come from: a reader on the disk there is, or slowed to a rate; or host memory."""

    reader: str
    bytes_per_second: float | None = None
    tier: Tier = "disk"

    @property
    def name(self) -> str:
        """As in a table."""
        if self.tier == "host":
            return "host memory"
        if self.bytes_per_second is not None:
            return f"{self.bytes_per_second / 1e9:g} GB/s"
        return "disk (direct)" if self.reader == "direct" else f"page cache ({self.reader})"

    def open(self, path: Path) -> Checkpoint:
        """A checkpoint there. Raises what Checkpoint raises."""
        if self.bytes_per_second is None:
            return Checkpoint(path, reader=self.reader)
        return SlowCheckpoint(path, reader=self.reader, bytes_per_second=self.bytes_per_second)


@dataclass(frozen=True)
class StreamCase:
    """What was measured of a store and some sequences, per pass.

    moved_bytes: of the loop. loop: everything at once. one_after_another: nothing at once. alone: by stage.
    dense_bytes, dense: the weights uncompressed, read and not computed with: the best that a stream of them
    can be; None where it was not measured. waited: share of the loop's last turn in which the schedule waited
    for a stage. threads: that compute and read; None where the device is no processor.
    """

    store: str
    sequences: int
    moved_bytes: int
    loop: Passes
    one_after_another: Passes
    alone: Mapping[str, Passes]
    waited: Mapping[str, float]
    threads: int | None
    dense_bytes: int | None = None
    dense: Passes | None = None

    @property
    def slowest(self) -> str:
        """The stage that takes longest alone."""
        return max(self.alone, key=lambda stage: self.alone[stage].median_seconds)

    @property
    def of_slowest(self) -> float:
        """The loop's time over that of the slowest stage alone: at best 1."""
        return self.loop.median_seconds / self.alone[self.slowest].median_seconds

    @property
    def limit_seconds(self) -> float:
        """Of the slowest stage, or of what all stages ask of the processors, if that is more."""
        slowest = self.alone[self.slowest].median_seconds
        if self.threads is None or "read" not in self.alone:
            return slowest
        reading = statistics.median(self.alone["read"].processor_seconds) / self.threads
        return max(slowest, self.alone["compute"].median_seconds + reading)

    @property
    def of_limit(self) -> float:
        """The loop's time over the limit."""
        return self.loop.median_seconds / self.limit_seconds

    @property
    def overlap_gain(self) -> float:
        """How many times as fast as doing nothing at once."""
        return self.one_after_another.median_seconds / self.loop.median_seconds

    @property
    def dense_gain(self) -> float | None:
        """How many times as fast as the stream of uncompressed weights."""
        return None if self.dense is None else self.dense.median_seconds / self.loop.median_seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return self.sequences / self.loop.median_seconds

    def to_json(self) -> dict[str, Any]:
        """As JSON, with all that follows from the samples."""
        passes = {"loop": self.loop, "one_after_another": self.one_after_another, "dense": self.dense}
        return (
            asdict(self)
            | {name: None if one is None else one.to_json() for name, one in passes.items()}
            | {"alone": {stage: one.to_json() for stage, one in self.alone.items()}}
            | {
                "slowest": self.slowest,
                "loop_over_slowest": self.of_slowest,
                "limit_seconds": self.limit_seconds,
                "loop_over_limit": self.of_limit,
                "overlap_gain": self.overlap_gain,
                "dense_gain": self.dense_gain,
                "tokens_per_second": self.tokens_per_second,
            }
        )


def measure_case(
    store: Store, checkpoint: Path, *, sequences: int, passes: int, rounds: int, dense: Path | None = None
) -> StreamCase:
    """Turns of everything, `rounds` of them, each opened for its turn: nothing else reads meanwhile."""
    with store.open(checkpoint) as opened:
        shares = shares_memory(default_device())
        plan = plan_in_tier(opened, store.tier, sequences=sequences)
        resident = plan_in_tier(opened, "device", sequences=sequences)
        turns: dict[str, list[Passes]] = {}
        waited: dict[str, float] = {}
        uncompressed = None if dense is None else store.open(dense)
        for _ in range(rounds):
            timeline = Timeline()
            ways = {
                "loop": computing(opened, plan, sequences=sequences, timeline=timeline),
                "one after another": computing(
                    opened, plan, sequences=sequences, schedule=one_after_another(plan)
                ),
                # From where it is read once, slowly, does not matter to what is resident.
                "compute": computing(Checkpoint(checkpoint), resident, sequences=sequences),
            }
            if plan.read and store.reader != MAPPED:
                ways["read"] = reading(opened, plan)
            if not shares:
                records = pass_records(opened.manifest)
                ways["transfer"] = moving(opened, records, plan_in_tier(opened, "host"))
            if uncompressed is not None:
                records = stored_records(uncompressed)
                ways["dense"] = moving(uncompressed, records, plan_of_records(uncompressed))
            for name, way in ways.items():
                with way as one_pass:
                    before = timeline.stages
                    turns.setdefault(name, []).append(time_passes(one_pass, passes))
                if name == "loop":
                    waited = shares_waited(timeline.stages - before)
    total = {name: sum(taken[1:], taken[0]) for name, taken in turns.items()}
    return StreamCase(
        store=store.name,
        sequences=sequences,
        moved_bytes=plan.transferred_bytes_per_pass,
        loop=total["loop"],
        one_after_another=total["one after another"],
        alone={stage: total[stage] for stage in ("read", "transfer", "compute") if stage in total},
        waited=waited,
        threads=len(usable_cpus()) if shares else None,
        dense_bytes=None if uncompressed is None else plan_of_records(uncompressed).read_bytes_per_pass,
        dense=total.get("dense"),
    )


def shares_waited(stages: Stages) -> dict[str, float]:
    """The share of some passes in which the schedule waited for each stage."""
    waits = {
        "read": stages.read_wait_seconds,
        "transfer": stages.transfer_wait_seconds,
        "compute": stages.step_wait_seconds,
    }
    return {stage: seconds / stages.pass_seconds for stage, seconds in waits.items()}


@dataclass(frozen=True)
class Order:
    """In which order a recorded loop issued transfers and steps.

    ahead: the plan's depth. steps: that were looked at. kept: the transfer of the record so many ahead was
    issued before each of them. least_seconds: by which it was, at least.
    """

    ahead: int
    steps: int
    kept: bool
    least_seconds: float


def measure_order(store: Store, checkpoint: Path, *, passes: int) -> Order:
    """The order of some passes, from the spans of a timeline."""
    timeline = Timeline(keep=True)
    with store.open(checkpoint) as opened:
        plan = plan_in_tier(opened, "disk")
        with computing(opened, plan, sequences=1, timeline=timeline) as one_pass:
            for _ in range(passes):
                one_pass()
    return order_of(timeline.spans, plan)


def order_of(spans: Sequence[Span], plan: Plan) -> Order:
    """Whether every put(i + depth) came before step(i), both counted over streamed records."""
    names = {plan.demands[i].name for i in plan.streamed}
    puts, steps = (
        sorted(span.issued_seconds for span in spans if span.stage == stage and span.record in names)
        for stage in ("put", "step")
    )
    ahead = min(plan.depth, len(plan.streamed))
    leads = [step - put for put, step in zip(puts[ahead:], steps, strict=True)]
    return Order(ahead, len(steps), all(lead > 0 for lead in leads), min(leads))
