"""The prediction: what a pass takes, stage by stage, from a plan and measured rates. Pure; a value.

The stages work at the same time, each on another record, so a pass takes as long as the slowest of them.
Reading needs processors too, to copy out of the page cache above all, and where the device is the processor
itself it takes them from computing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from endor_jax.errors import InvalidInputError
from endor_jax.store.disk_rates import Reading
from endor_jax.streaming.plan import Plan

Stage = Literal["read", "transfer", "compute"]

STAGES: dict[Stage, str] = {"read": "disk", "transfer": "link", "compute": "compute"}
"""What each stage is bound by, in a word."""


@dataclass(frozen=True)
class Costs:
    """What a plan's stages cost on this machine; of rates that were not measured on the model.

    record_seconds: computing with each record of a pass, in order. ends_seconds: once per pass, beside the
    records. read: the reader's rate in the state that is expected once a pass is over; None if nothing is
    known, which is enough where nothing is read. cached: that state is "in the page cache".
    link_bytes_per_second: host to device; None where they are one memory. processors: that share the work,
    where the device is the processor. sequences: that go on by a token in each pass. moved_bytes: over the
    link in each pass, beside records.
    """

    record_seconds: tuple[float, ...]
    ends_seconds: float
    read: Reading | None
    cached: bool
    link_bytes_per_second: float | None
    processors: int
    sequences: int = 1
    moved_bytes: int = 0


@dataclass(frozen=True)
class Prediction:
    """Seconds of a pass, which is a token of each sequence, once the first passes are over.

    read_seconds, transfer_seconds, compute_seconds: of each stage by itself. reading_processor_seconds: what
    reading adds to computing where both are the processor's. seconds: of a pass in all. binding: the stage
    that it waits for. cached: what is read comes from the page cache.
    """

    sequences: int
    read_seconds: float
    transfer_seconds: float
    compute_seconds: float
    reading_processor_seconds: float
    seconds: float
    binding: Stage
    cached: bool

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return self.sequences / self.seconds

    def __str__(self) -> str:
        where = "the page cache" if self.cached else "the disk"
        parts = [f"{self.read_seconds:.2g} s of reading from {where}"] if self.read_seconds else []
        parts += [f"{self.transfer_seconds:.2g} s of transfer"] if self.transfer_seconds else []
        parts += [f"{self.compute_seconds:.2g} s of computing"]
        per = "token" if self.sequences == 1 else f"token of each of {self.sequences} sequences"
        bound = "read-bound" if self.binding == "read" and self.cached else f"{STAGES[self.binding]}-bound"
        return f"{self.tokens_per_second:.3g} tokens/s, {bound} ({', '.join(parts)} per {per})"


def predict(plan: Plan, costs: Costs) -> Prediction:
    """What a pass of this plan takes. Raises InvalidInputError for costs of other records, or without the
    rate of a reader that the plan needs."""
    if len(costs.record_seconds) != len(plan.demands):
        raise InvalidInputError(
            "prediction",
            got=f"costs of {len(costs.record_seconds)} records",
            expected=f"of the plan's {len(plan.demands)}",
            fix="make both from one manifest",
        )
    read = reading = 0.0
    if plan.read_bytes_per_pass:
        if costs.read is None:
            raise InvalidInputError(
                "prediction",
                got="no rate of the reader",
                expected="one: the plan reads in every pass",
                fix="measure the disk (store/disk_rates.py)",
            )
        read = plan.read_bytes_per_pass / costs.read.bytes_per_second
        if plan.shares_memory:
            reading = plan.read_bytes_per_pass * costs.read.cpu_seconds_per_byte / costs.processors
    link = costs.link_bytes_per_second
    transfer = (plan.transferred_bytes_per_pass + costs.moved_bytes) / link if link else 0.0
    compute = sum(costs.record_seconds) + costs.ends_seconds
    stages: dict[Stage, float] = {"compute": compute + reading, "transfer": transfer, "read": read}
    binding = max(stages, key=lambda stage: stages[stage])
    return Prediction(
        sequences=costs.sequences,
        read_seconds=read,
        transfer_seconds=transfer,
        compute_seconds=compute,
        reading_processor_seconds=reading,
        seconds=stages[binding],
        binding=binding,
        cached=costs.cached,
    )
