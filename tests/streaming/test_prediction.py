"""The prediction of a plan: the slowest stage, on hand-made rates, for any plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import DoesNotFitError, InvalidInputError
from endor_jax.store.disk_rates import Reading
from endor_jax.streaming.plan import Demand, FixedCosts, Plan, make_plan
from endor_jax.streaming.prediction import Costs, predict

RECORDS = 10
DEMANDS = tuple(Demand(f"layers.{i}", 100, 100, 1, 100) for i in range(RECORDS))
COSTS = Costs(
    record_seconds=(0.01,) * RECORDS,
    ends_seconds=0.02,
    readings={1: Reading(bytes_per_second=10_000.0, cpu_seconds_per_byte=1e-5)},
    reads=1,
    cached=False,
    ring_bytes_per_second=None,
    kept_bytes_per_second=None,
    processors=2,
)


def plan_of(device: int, host: int = 10**9, *, shares_memory: bool = True) -> Plan:
    return make_plan(
        DEMANDS,
        fixed=FixedCosts(),
        device_budget_bytes=device,
        host_budget_bytes=host,
        depth=1,
        reads=1,
        shares_memory=shares_memory,
    )


def all_on_disk(*, shares_memory: bool = True) -> Plan:
    plan = plan_of(10**9, shares_memory=shares_memory)
    return replace(plan, tiers=("disk",) * RECORDS)


def test_resident_records_cost_computing_only() -> None:
    prediction = predict(plan_of(10**9), COSTS)
    assert prediction.seconds == prediction.compute_seconds == pytest.approx(0.12)
    assert (prediction.read_seconds, prediction.transfer_seconds) == (0.0, 0.0)
    assert prediction.binding == "compute"
    assert prediction.tokens_per_second == pytest.approx(1 / 0.12)
    assert str(prediction) == "8.33 tokens/s, compute-bound (0.12 s of computing per token)"


def test_what_is_read_costs_what_the_disk_gives() -> None:
    slow = replace(COSTS, readings={1: Reading(1000.0)})
    prediction = predict(all_on_disk(), slow)
    assert (prediction.binding, prediction.seconds) == ("read", 1.0)
    assert str(prediction) == (
        "1 tokens/s, disk-bound (1 s of reading from the disk, 0.12 s of computing per token)"
    )
    assert "read-bound (1 s of reading from the page cache" in str(
        predict(all_on_disk(), replace(slow, cached=True))
    )


def test_reading_takes_processors_from_computing_where_they_are_the_device() -> None:
    shared = predict(all_on_disk(), COSTS)
    assert shared.reading_processor_seconds == pytest.approx(0.005)
    assert (shared.binding, shared.seconds) == ("compute", pytest.approx(0.125))
    own = predict(
        all_on_disk(shares_memory=False), replace(COSTS, ring_bytes_per_second=1e9, kept_bytes_per_second=1e9)
    )
    assert own.reading_processor_seconds == 0.0
    assert own.seconds == pytest.approx(0.12)


def test_what_is_transferred_costs_what_the_link_gives() -> None:
    costs = replace(COSTS, ring_bytes_per_second=2000.0, kept_bytes_per_second=2000.0)
    prediction = predict(plan_of(500, shares_memory=False), costs)
    assert prediction.binding == "transfer"
    moved = plan_of(500, shares_memory=False).transferred_bytes_per_pass
    assert prediction.seconds == pytest.approx(moved / 2000)
    assert "link-bound" in str(prediction)
    assert "of transfer" in str(prediction)
    more = predict(plan_of(500, shares_memory=False), replace(costs, moved_bytes=1000))
    assert more.transfer_seconds == pytest.approx(prediction.transfer_seconds + 0.5)


def test_sequences_share_a_pass() -> None:
    prediction = predict(plan_of(10**9), replace(COSTS, sequences=4))
    assert prediction.tokens_per_second == pytest.approx(4 / 0.12)
    assert "per token of each of 4 sequences" in str(prediction)


def test_costs_of_another_model_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="costs of 3 records, expected of the plan's 10"):
        predict(plan_of(10**9), replace(COSTS, record_seconds=(1.0,) * 3))


def test_a_plan_that_reads_needs_a_rate() -> None:
    unknown = replace(COSTS, readings={})
    assert predict(plan_of(10**9), unknown).binding == "compute"
    with pytest.raises(InvalidInputError, match="no rate of the reader with 1 reads in flight"):
        predict(all_on_disk(), unknown)


def test_a_plan_reads_at_the_rate_of_its_reads_in_flight() -> None:
    costs = replace(COSTS, readings={1: Reading(1000.0), 2: Reading(2000.0), 4: Reading(3000.0)})
    for reads, seconds in ((1, 1.0), (2, 0.5), (3, 0.5), (4, 1 / 3), (9, 1 / 3)):
        plan = replace(all_on_disk(), reads=reads)
        assert predict(plan, costs).read_seconds == pytest.approx(seconds)


def test_what_was_just_read_and_what_host_memory_keeps_travel_at_rates_of_their_own() -> None:
    plan = replace(plan_of(10**9, shares_memory=False), tiers=("disk",) * 4 + ("host",) * 6)
    costs = replace(COSTS, ring_bytes_per_second=1000.0, kept_bytes_per_second=2000.0)
    assert predict(plan, costs).transfer_seconds == pytest.approx(0.4 + 0.3)


@given(
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=12),
    budgets=st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)),
    rate=st.floats(1.0, 1e9),
    link=st.one_of(st.none(), st.floats(1.0, 1e9)),
)
def test_more_device_memory_is_never_predicted_slower(
    sizes: list[int], budgets: tuple[int, int], rate: float, link: float | None
) -> None:
    demands = [Demand(str(i), size, size, 1, size) for i, size in enumerate(sizes)]
    readings = {1: Reading(rate, 1 / rate)}
    costs = Costs((0.001,) * len(sizes), 0.0, readings, 1, True, link, link, processors=2)
    seconds = []
    for budget in sorted(budgets):
        try:
            plan = make_plan(
                demands,
                fixed=FixedCosts(),
                device_budget_bytes=budget,
                host_budget_bytes=10**8,
                depth=1,
                reads=1,
                shares_memory=link is None,
            )
        except DoesNotFitError:
            return
        seconds.append(predict(plan, costs).seconds)
    assert seconds[1] <= seconds[0] * (1 + 1e-9)


def test_steps_compute_and_gather_in_turns() -> None:
    prediction = predict(plan_of(10**9), replace(COSTS, gather_seconds=0.1))
    assert (prediction.binding, prediction.seconds) == ("compute", pytest.approx(0.22))
    assert str(prediction) == (
        "4.55 tokens/s, compute-bound (0.12 s of computing, 0.1 s of gathering per token)"
    )
    longer = predict(plan_of(10**9), replace(COSTS, gather_seconds=0.2))
    assert (longer.binding, longer.seconds) == ("gather", pytest.approx(0.32))
    assert "gathering-bound" in str(longer)


def test_each_device_has_a_link_of_its_own() -> None:
    costs = replace(COSTS, ring_bytes_per_second=2000.0, kept_bytes_per_second=2000.0)
    one = plan_of(500, shares_memory=False)
    several = replace(one, devices=4)  # what a device needs is in the demands
    assert several.transferred_bytes_per_pass == 4 * one.transferred_bytes_per_pass
    assert predict(several, costs).transfer_seconds == predict(one, costs).transfer_seconds
