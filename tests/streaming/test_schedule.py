"""The schedule, a value: transfers are issued ahead, each streamed record once per pass, in cyclic order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from endor_jax.streaming.schedule import Action, lookahead, one_pass, prologue


@st.composite
def passes(draw: st.DrawFn) -> tuple[int, tuple[int, ...], int]:
    records = draw(st.integers(1, 12))
    streamed = draw(st.sets(st.integers(0, records - 1)))
    return records, tuple(sorted(streamed)), draw(st.integers(1, 5))


def test_as_written_in_the_design() -> None:
    put, step = (lambda record: Action("put", record)), (lambda record: Action("step", record))
    assert prologue(range(4), 2) == (put(0), put(1))
    assert one_pass(4, range(4), 2) == (
        *(put(2), step(0), put(3), step(1)),
        *(put(0), step(2), put(1), step(3)),
    )
    assert one_pass(4, (1, 3), 1) == (step(0), put(3), step(1), step(2), put(1), step(3))


@given(passes(), st.integers(1, 4))
def test_every_pass(case: tuple[int, tuple[int, ...], int], turns: int) -> None:
    records, streamed, depth = case
    turn = one_pass(records, streamed, depth)
    assert [action.record for action in turn if action.kind == "step"] == list(range(records))
    assert sorted(action.record for action in turn if action.kind == "put") == list(streamed)
    # Over many passes: puts follow the cyclic order, and each is `ahead` streamed steps before its own.
    actions = [*prologue(streamed, depth), *turn * turns]
    puts = [action.record for action in actions if action.kind == "put"]
    assert puts == [streamed[k % len(streamed)] for k in range(len(puts))]
    in_flight: list[int] = []
    for action in actions:
        if action.kind == "put":
            in_flight.append(action.record)
            assert len(in_flight) <= lookahead(streamed, depth) + 1
        elif action.record in streamed:
            assert len(in_flight) == lookahead(streamed, depth) + 1
            assert in_flight.pop(0) == action.record
