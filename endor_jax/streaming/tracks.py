"""A timeline by track: which spans go on one line, where passes begin, how busy each stage was. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from endor_jax.errors import InvalidInputError
from endor_jax.streaming.timeline import WAITS, Span, Stage

Work = Literal["read", "put", "step"]

WORK: dict[Stage, Work] = {"wait for read": "read", "wait for transfer": "put", "wait for step": "step"}
"""What a wait of the schedule is for."""


def track(span: Span) -> str:
    """The line that a span is drawn on; spans of one line do not overlap."""
    if span.stage == "read":
        return f"reader {span.lane}"
    return {"put": "link", "step": "device"}.get(span.stage, "schedule")


def tracks(spans: Sequence[Span]) -> tuple[str, ...]:
    """All lines in the order in which bytes go: readers, link, device; then what the schedule waited for."""
    order = {"link": 1, "device": 2, "schedule": 3}
    found = {track(span): (order.get(track(span), 0), span.lane) for span in spans}
    return tuple(sorted(found, key=lambda name: found[name]))


def pass_starts(spans: Sequence[Span]) -> tuple[float, ...]:
    """When each pass issued its first step; a pass has a step of every record, in one order."""
    steps = sorted((span for span in spans if span.stage == "step"), key=lambda span: span.issued_seconds)
    return tuple(span.issued_seconds for span in steps if span.record == steps[0].record)


@dataclass(frozen=True)
class Steady:
    """Some successive passes. start_seconds, end_seconds: by the clock of the spans.

    busy: share of the time in which a stage worked: "read", "put", "step". waited: share in which the
    schedule waited for it. read_bytes: of reads that ended in this time.
    """

    passes: int
    start_seconds: float
    end_seconds: float
    busy: dict[Work, float]
    waited: dict[Work, float]
    read_bytes: int

    @property
    def pass_seconds(self) -> float:
        """Of one pass, on average."""
        return (self.end_seconds - self.start_seconds) / self.passes

    @property
    def binding(self) -> Work:
        """The stage that everything else waited for."""
        return max(self.waited, key=lambda stage: self.waited[stage])


def steady(spans: Sequence[Span], *, passes: int = 3) -> Steady:
    """The last passes, at most so many, and never the first, unless it is the only one: that compiles.

    Raises InvalidInputError for spans without a step.
    """
    starts = pass_starts(spans)
    if not starts:
        raise InvalidInputError(
            "timeline",
            got="no step",
            expected="a pass at least",
            fix="collect it with Timeline(keep=True), and run a pass",
        )
    # Until its last step is over, the schedule is in a pass; by then readers are in the next one.
    end = max(span.end_seconds for span in spans if span.stage == "step")
    start = starts[max(len(starts) - passes, min(1, len(starts) - 1))]
    within = [span for span in spans if span.end_seconds > start and span.start_seconds < end]
    seconds = end - start

    def share(*stages: Stage) -> float:
        intervals = [
            (max(span.start_seconds, start), min(span.end_seconds, end))
            for span in within
            if span.stage in stages
        ]
        return covered(intervals) / seconds

    return Steady(
        passes=sum(begin >= start for begin in starts),
        start_seconds=start,
        end_seconds=end,
        busy={"read": share("read"), "put": share("put"), "step": share("step")},
        waited={WORK[wait]: share(wait) for wait in WAITS},
        read_bytes=sum(
            span.size_bytes for span in within if span.stage == "read" and span.end_seconds <= end
        ),
    )


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of some intervals."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        length += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return length
