"""The prediction: what a pass takes, stage by stage, from a plan and measured rates. Pure; a value.

The stages work at the same time, each on another record, so a pass takes as long as the slowest of them;
where memory is too short for a record to wait for its reader, reading and computing take turns.
Reading needs processors too, to copy out of the page cache above all, and where the device is the processor
itself it takes them from computing, whose threads share what is left of them. Where several devices share
every layer, a step computes and gathers in turns: what it gathers, it goes on to compute with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from endor_jax.errors import InvalidInputError
from endor_jax.store.disk_rates import Reading
from endor_jax.streaming.plan import Plan

Stage = Literal["read", "transfer", "compute", "gather"]

STAGES: dict[Stage, str] = {"read": "disk", "transfer": "link", "compute": "compute", "gather": "gathering"}
"""What each stage is bound by, in a word."""


@dataclass(frozen=True)
class Costs:
    """What a plan's stages cost on this machine; of rates that were not measured on the model.

    record_seconds: computing with each record of a pass, in order. ends_seconds: once per pass, beside the
    records. readings: the reader's rates by reads in flight, in the state that is expected once a pass is
    over; nothing is enough where nothing is read. reads: those that are wished for. cached: that state is "in
    the page cache". ring_bytes_per_second, kept_bytes_per_second: to the device, of what was just read and of
    what host memory keeps; None where device and host are one memory. processors: that share the work, where
    the device is the processor. sequences: that go on by a token in each pass. moved_bytes: over the link in
    each pass, beside records, for each device. gather_seconds: in which devices that share every layer give
    each other what they computed.
    """

    record_seconds: tuple[float, ...]
    ends_seconds: float
    readings: Mapping[int, Reading]
    reads: int
    cached: bool
    ring_bytes_per_second: float | None
    kept_bytes_per_second: float | None
    processors: int
    sequences: int = 1
    moved_bytes: int = 0
    gather_seconds: float = 0.0

    def reading(self, reads: int) -> Reading:
        """The rate with so many reads in flight, or with the next fewer that were measured.

        Raises InvalidInputError if there is none.
        """
        measured = [each for each in self.readings if each <= reads]
        if not measured:
            raise InvalidInputError(
                "prediction",
                got=f"no rate of the reader with {reads} reads in flight",
                expected="one: the plan reads in every pass",
                fix="measure the disk (store/disk_rates.py)",
            )
        return self.readings[max(measured)]


@dataclass(frozen=True)
class Prediction:
    """Seconds of a pass, which is a token of each sequence, once the first passes are over.

    read_seconds, transfer_seconds, compute_seconds: of each stage by itself. reading_processor_seconds: what
    reading adds to computing where both are the processor's. seconds: of a pass in all. binding: the stage
    that it waits for. cached: what is read comes from the page cache. gather_seconds: of the steps, beside
    computing.
    """

    sequences: int
    read_seconds: float
    transfer_seconds: float
    compute_seconds: float
    reading_processor_seconds: float
    seconds: float
    binding: Stage
    cached: bool
    gather_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return self.sequences / self.seconds

    def __str__(self) -> str:
        where = "the page cache" if self.cached else "the disk"
        parts = [f"{self.read_seconds:.2g} s of reading from {where}"] if self.read_seconds else []
        parts += [f"{self.transfer_seconds:.2g} s of transfer"] if self.transfer_seconds else []
        copying = f" + {self.reading_processor_seconds:.2g} s of copying"
        parts += [
            f"{self.compute_seconds:.2g} s of computing" + copying * bool(self.reading_processor_seconds)
        ]
        parts += [f"{self.gather_seconds:.2g} s of gathering"] if self.gather_seconds else []
        per = "token" if self.sequences == 1 else f"token of each of {self.sequences} sequences"
        bound = "read-bound" if self.binding == "read" and self.cached else f"{STAGES[self.binding]}-bound"
        return f"{self.tokens_per_second:.3g} tokens/s, {bound} ({', '.join(parts)} per {per})"


def predict(plan: Plan, costs: Costs) -> Prediction:
    """What a pass of this plan takes.

    Raises InvalidInputError for costs of other records, or without the rate of a reader that the plan needs.
    """
    if len(costs.record_seconds) != len(plan.demands):
        raise InvalidInputError(
            "prediction",
            got=f"costs of {len(costs.record_seconds)} records",
            expected=f"of the plan's {len(plan.demands)}",
            fix="make both from one manifest",
        )
    read = reading = 0.0
    if plan.read_bytes_per_pass:
        rate = costs.reading(plan.reads)
        read = plan.read_bytes_per_pass / rate.bytes_per_second
        if plan.shares_memory:
            reading = plan.read_bytes_per_pass * rate.cpu_seconds_per_byte / costs.processors
    transfer = _transfer_seconds(plan, costs)
    compute = sum(costs.record_seconds) + costs.ends_seconds
    seconds, binding = slowest(
        read=read, transfer=transfer, compute=compute + reading, gather=costs.gather_seconds
    )
    # Where nothing waits for a reader, it idles until the step before is over: one after the other.
    alternating = read + compute + costs.gather_seconds if read and not plan.queued else 0.0
    return Prediction(
        sequences=costs.sequences,
        read_seconds=read,
        transfer_seconds=transfer,
        compute_seconds=compute,
        reading_processor_seconds=reading,
        seconds=max(seconds, alternating),
        binding=binding,
        cached=costs.cached,
        gather_seconds=costs.gather_seconds,
    )


def slowest(*, read: float, transfer: float, compute: float, gather: float = 0.0) -> tuple[float, Stage]:
    """Seconds of the slowest of stages that work at the same time, and which it is; of computing and
    gathering, which take turns, the longer one."""
    step: Stage = "gather" if gather > compute else "compute"
    stages: dict[Stage, float] = {step: compute + gather, "transfer": transfer, "read": read}
    binding = max(stages, key=lambda stage: stages[stage])
    return stages[binding], binding


def _transfer_seconds(plan: Plan, costs: Costs) -> float:
    ring, kept = costs.ring_bytes_per_second, costs.kept_bytes_per_second
    if ring is None or kept is None:
        return 0.0
    # On each device, each of which has a link of its own.
    from_ring = sum(plan.demands[i].buffer_bytes for i in plan.read)
    transferred = plan.transferred_bytes_per_pass / plan.devices
    return from_ring / ring + (transferred - from_ring + costs.moved_bytes) / kept
