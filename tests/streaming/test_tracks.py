"""Tracks and trace events: boxes that do not overlap, passes that are found again, shares that add up."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import InvalidInputError
from endor_jax.streaming.timeline import Span
from endor_jax.streaming.trace_events import trace_events
from endor_jax.streaming.tracks import covered, pass_starts, steady, tracks

RECORDS, PASSES, STEP = 3, 4, 0.5


def spans() -> list[Span]:
    """Passes of three records: every step takes half a second, reads of two lanes a second each."""
    found = []
    for number in range(RECORDS * PASSES):
        record, start = f"layers.{number % RECORDS}", 10 + number * STEP
        found += [
            Span("read", record, start, start, start + 1, 1000, lane=number % 2),
            Span("put", record, start, start, start + 0.1, 2000),
            Span("wait for step", record, start + 0.2, start + 0.2, start + 0.4),
            Span("step", record, start - 0.1, start, start + STEP),
        ]
    return found


def boxes(events: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """By track, in order of time."""
    found: dict[int, list[dict[str, Any]]] = {}
    for event in events["traceEvents"]:
        if event["ph"] == "X":
            found.setdefault(event["tid"], []).append(event)
    return {track: sorted(own, key=lambda box: box["ts"]) for track, own in found.items()}


def test_a_trace_has_what_the_format_asks_for_and_no_box_overlaps_the_next() -> None:
    events = json.loads(json.dumps(trace_events(spans())))
    assert events["displayTimeUnit"] == "ms"
    names = {}
    for event in events["traceEvents"]:
        assert {"name", "ph", "pid", "tid"} <= event.keys()
        if event["ph"] == "M":
            names[event["tid"]] = event["args"].get("name", names.get(event["tid"]))
        elif event["ph"] == "i":
            assert event["s"] == "p"
        else:
            assert event["ph"] == "X"
            assert event["dur"] >= 0 <= event["ts"]
            assert event["args"]["record"].startswith("layers.")
    by_track = boxes(events)
    assert sorted(by_track) == [1, 2, 3, 4, 5]
    assert [names[track] for track in sorted(by_track)] == list(tracks(spans()))
    for own in by_track.values():
        for box, after in itertools.pairwise(own):
            assert box["ts"] + box["dur"] <= after["ts"] + 0.001


def test_boxes_tell_bytes_and_rate_and_times_are_microseconds() -> None:
    first = boxes(trace_events(spans()))[1][0]
    assert (first["ts"], first["dur"]) == (0, 1e6)
    assert first["args"] == {"record": "layers.0", "bytes": 1000, "GB/s": 0.0}
    step = boxes(trace_events(spans()))[4][0]
    assert step["args"] == {"record": "layers.0", "issued before, us": pytest.approx(1e5)}


def test_tracks_go_from_the_readers_to_the_device() -> None:
    assert tracks(spans()) == ("reader 0", "reader 1", "link", "device", "schedule")
    assert tracks([]) == ()
    assert boxes(trace_events([])) == {}


def test_a_pass_begins_with_each_step_of_its_first_record() -> None:
    expected = [10 + number * RECORDS * STEP - 0.1 for number in range(PASSES)]
    assert pass_starts(spans()) == pytest.approx(expected)
    marks = [event["name"] for event in trace_events(spans())["traceEvents"] if event["ph"] == "i"]
    assert marks == ["pass 0", "pass 1", "pass 2", "pass 3"]


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (3, 3), (9, 3)])
def test_the_steady_passes_are_the_last_ones_without_the_first(asked: int, got: int) -> None:
    found = steady(spans(), passes=asked)
    assert found.passes == got
    assert found.start_seconds == pytest.approx(pass_starts(spans())[-got])
    assert found.end_seconds == pytest.approx(10 + RECORDS * PASSES * STEP)
    assert found.busy["read"] == pytest.approx(1)
    assert found.waited == {
        "read": 0,
        "put": 0,
        "step": pytest.approx(0.2 * RECORDS / (found.pass_seconds), rel=0.1),
    }
    assert found.binding == "step"
    assert found.read_bytes < 1000 * RECORDS * (got + 1)


def test_one_pass_is_better_than_none_and_none_is_refused() -> None:
    assert steady(spans()[: 4 * RECORDS]).passes == 1
    with pytest.raises(InvalidInputError, match=r"timeline: got no step, expected a pass at least"):
        steady([Span("read", "layers.0", 0.0, 0.0, 1.0)])


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9))))
def test_covered_is_the_length_of_the_union(pieces: list[tuple[int, int]]) -> None:
    intervals = [(float(start), float(start + length)) for start, length in pieces]
    assert covered(intervals) == len(
        {unit for start, end in intervals for unit in range(int(start), int(end))}
    )
