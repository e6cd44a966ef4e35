"""The schedule, a value: what is done in which order, with no more slots than the plan counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from endor_jax.streaming.plan import Demand, FixedCosts, Plan, Tier
from endor_jax.streaming.schedule import Action, make_schedule

TIERS: tuple[Tier, ...] = ("device", "host", "disk")


def planned(
    tiers: tuple[Tier, ...], *, depth: int = 2, reads: int = 2, shared: bool = False, queued: int = 0
) -> Plan:
    demands = tuple(Demand(f"layers.{i}", 4000, 4096, 1, 4096) for i in range(len(tiers)))
    return Plan(demands, tiers, FixedCosts(), depth, 0, 0, shared, reads, queued=queued)


def written(actions: tuple[Action, ...]) -> str:
    return " ".join(f"{action.kind}({action.record})" for action in actions)


def test_on_a_device_with_its_own_memory() -> None:
    schedule = make_schedule(planned(("disk",) * 4))
    assert written(schedule.prologue) == "read(0) read(1) read(2) read(3) put(0) put(1)"
    assert written(schedule.one_pass) == (
        "put(2) step(0) read(0) put(3) step(1) read(1) release(0) "
        "put(0) step(2) read(2) release(1) put(1) step(3) read(3) release(2) release(3)"
    )


def test_where_memory_is_shared() -> None:
    """Slots are free only when the step that works in them is over."""
    schedule = make_schedule(planned(("disk", "device", "disk"), reads=1, shared=True))
    assert written(schedule.prologue) == "read(0) read(2) read(0) read(2) put(0) put(2)"
    assert written(schedule.one_pass) == (
        "put(0) step(0) step(1) release(0) read(0) put(2) step(2) release(1) release(2) read(2)"
    )


def test_nothing_moves_where_everything_stays() -> None:
    schedule = make_schedule(planned(("device",) * 2))
    assert (written(schedule.prologue), written(schedule.one_pass)) == (
        "",
        "step(0) step(1) release(0) release(1)",
    )


@given(
    st.lists(st.sampled_from(TIERS), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 1),
    st.integers(1, 4),
)
def test_every_schedule(
    tiers: list[Tier], depth: int, reads: int, shared: bool, queued: int, turns: int
) -> None:
    """Walks it as the executor does, and finds every slot where the plan says that it is."""
    plan = planned(tuple(tiers), depth=depth, reads=reads, shared=shared, queued=queued)
    schedule = make_schedule(plan)
    records, streamed, read = range(len(plan.tiers)), plan.streamed, plan.read
    in_pass = [action.record for action in schedule.one_pass if action.kind == "step"]
    assert in_pass == list(records)

    free, ahead = plan.ring_records, min(plan.depth, len(streamed))
    reading: list[int] = []  # asked for, not put yet
    moving: list[int] = []  # put, its step not issued yet
    running: list[int] = []
    asked = put = 0
    for action in (*schedule.prologue, *schedule.one_pass * turns):
        record = action.record
        if action.kind == "read":
            assert record == read[asked % len(read)]
            asked += 1
            free -= 1
            assert free >= 0
            reading.append(record)
        elif action.kind == "put":
            assert record == streamed[put % len(streamed)]
            put += 1
            if record in read:
                assert len(reading) >= min(reads + queued, len(read))  # while this one is waited for
                assert reading.pop(0) == record
            moving.append(record)
            assert len(moving) <= ahead + 1
        elif action.kind == "step":
            if record in streamed:
                # put(i + depth) comes before step(i): the link has work while the step runs.
                assert len(moving) == ahead + 1
                assert moving.pop(0) == record
                free += record in read and not plan.shares_memory
            running.append(record)
            assert len(running) <= 2
        else:
            assert running.pop(0) == record
            free += record in read and plan.shares_memory
    assert not running
    assert free == 0
