"""A timeline as trace events, the JSON that ui.perfetto.dev and chrome://tracing open. Pure.

Source: "Trace Event Format" (Google, 2016): complete events "X", instant events "i", metadata "M"; times are
in microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from endor_jax.streaming.timeline import Span
from endor_jax.streaming.tracks import pass_starts, track, tracks

PROCESS = 1


def trace_events(spans: Sequence[Span]) -> dict[str, Any]:
    """A box per span on the line of its track, a mark where a pass begins. The first span begins at 0."""
    origin = min((span.start_seconds for span in spans), default=0.0)
    threads = {name: number for number, name in enumerate(tracks(spans), 1)}
    events: list[dict[str, Any]] = [_named("process_name", 0, name="endor_jax")]
    for name, number in threads.items():
        events += [
            _named("thread_name", number, name=name),
            _named("thread_sort_index", number, sort_index=number),
        ]
    for number, start in enumerate(pass_starts(spans)):
        mark = {"name": f"pass {number}", "ph": "i", "s": "p", "pid": PROCESS, "tid": threads["device"]}
        events.append(mark | {"ts": _microseconds(start - origin)})
    boxes = [_box(span, origin, threads[track(span)]) for span in spans]
    return {
        "displayTimeUnit": "ms",
        "traceEvents": events + sorted(boxes, key=lambda box: (box["tid"], box["ts"])),
    }


def _named(kind: str, thread: int, **arguments: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": PROCESS, "tid": thread, "args": arguments}


def _box(span: Span, origin: float, thread: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {"record": span.record}
    if span.size_bytes:
        arguments["bytes"] = span.size_bytes
        if seconds := span.end_seconds - span.start_seconds:
            arguments["GB/s"] = round(span.size_bytes / seconds / 1e9, 3)
    if span.issued_seconds < span.start_seconds:
        arguments["issued before, us"] = _microseconds(span.start_seconds - span.issued_seconds)
    start, end = (_microseconds(time - origin) for time in (span.start_seconds, span.end_seconds))
    return {
        "name": span.record if span.stage in ("read", "put", "step") else f"{span.stage}: {span.record}",
        "cat": span.stage,
        "ph": "X",
        "ts": start,
        "dur": round(end - start, 3),
        "pid": PROCESS,
        "tid": thread,
        "args": arguments,
    }


def _microseconds(seconds: float) -> float:
    """To the nanosecond, which is more than the clock has."""
    return round(1e6 * seconds, 3)
