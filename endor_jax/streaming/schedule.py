"""The schedule of a pass as a value: when parts are read, transfers issued, steps run and memory given back.

One thread walks it. Before the step of the k-th streamed record, the transfer of the (k + depth)-th is
issued, wrapping into the next pass. On CUDA a copy waits for all compute enqueued before its buffer was
allocated, so the order put(i+2), step(i) is what keeps the link busy while a step runs (docs/design.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from endor_jax.streaming.plan import Plan


@dataclass(frozen=True)
class Action:
    """One thing that is done for a record.

    `read`: have a reader fill free slots with its parts. `put`: issue its transfer, once it is read. `step`:
    run its layer, once it has arrived. `release`: wait for its step; its memory may be used again.
    """

    kind: Literal["read", "put", "step", "release"]
    record: int


@dataclass(frozen=True)
class Schedule:
    """What is done once, before the first pass, and what is done in every pass."""

    prologue: tuple[Action, ...]
    one_pass: tuple[Action, ...]


def make_schedule(plan: Plan) -> Schedule:
    """The schedule of a plan.

    A record is read as soon as there are slots for it: those of one whose step is over where the device
    works in the slots themselves, else those of one that has arrived on the device.
    """
    streamed, read = plan.streamed, plan.read
    ahead = min(plan.depth, len(streamed))
    prologue = [Action("read", read[k % len(read)]) for k in range(plan.ring_records)]
    prologue += [Action("put", record) for record in streamed[:ahead]]
    follows = {record: streamed[(k + ahead) % len(streamed)] for k, record in enumerate(streamed)}
    refills = {record: read[(k + plan.ring_records) % len(read)] for k, record in enumerate(read)}

    actions: list[Action] = []

    def refill(record: int) -> None:
        if record in refills:
            actions.append(Action("read", refills[record]))

    def release(record: int) -> None:
        actions.append(Action("release", record))
        if plan.shares_memory:
            refill(record)

    for record in range(len(plan.tiers)):
        if record in follows:
            actions.append(Action("put", follows[record]))
        actions.append(Action("step", record))
        if not plan.shares_memory:
            refill(record)
        if record:  # the one before: so the device has its next step before it is done with the last
            release(record - 1)
    if plan.tiers:
        release(len(plan.tiers) - 1)
    return Schedule(tuple(prologue), tuple(actions))
