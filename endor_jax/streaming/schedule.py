"""The schedule of a pass as a value: in which order transfers are issued and steps run.

One thread walks it. Before the step of the k-th streamed record, the transfer of the (k + depth)-th is
issued, wrapping into the next pass. On CUDA a copy waits for all compute enqueued before its buffer was
allocated, so the order put(i+2), step(i) is what keeps the link busy while a step runs (docs/design.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Action:
    """`put`: issue the transfer of a record. `step`: run the layer of a record."""

    kind: Literal["put", "step"]
    record: int


def lookahead(streamed: Sequence[int], depth: int) -> int:
    """How many streamed records are issued ahead: `depth`, or all of them if there are fewer."""
    return min(depth, len(streamed))


def prologue(streamed: Sequence[int], depth: int) -> tuple[Action, ...]:
    """What is issued once, before the first pass."""
    return tuple(Action("put", record) for record in streamed[: lookahead(streamed, depth)])


def one_pass(records: int, streamed: Sequence[int], depth: int) -> tuple[Action, ...]:
    """One pass over `records` records, of which `streamed` (ascending) are transferred every time."""
    ahead = lookahead(streamed, depth)
    order = {record: k for k, record in enumerate(streamed)}
    actions: list[Action] = []
    for record in range(records):
        if record in order:
            actions.append(Action("put", streamed[(order[record] + ahead) % len(streamed)]))
        actions.append(Action("step", record))
    return tuple(actions)
