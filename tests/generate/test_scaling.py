"""The scaling model: what holds for any rates and spreads, and that for one device it is `predict`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax import models
from endor_jax.errors import DoesNotFitError, InvalidInputError
from endor_jax.generate.scaling import (
    Exchange,
    Load,
    Machine,
    Spread,
    cache_bytes,
    estimate,
    exchange_of,
    load_of,
)
from endor_jax.store.disk_rates import Reading
from endor_jax.streaming.gather_rates import Gathering
from endor_jax.streaming.plan import Demand, FixedCosts, make_plan
from endor_jax.streaming.prediction import Costs, predict
from tests.tiny_models import LLAMA, OPT

LAYERS = 12
CONFIG = models.from_hf(LLAMA | {"num_hidden_layers": LAYERS})
LOAD = Load(CONFIG, layer_bytes=1000.0, head_bytes=1000.0, context=64)
FAST = Exchange(1e-9, 1e15)
MACHINE = Machine(
    link_bytes_per_second=5000.0,
    disk_bytes_per_second=1000.0,
    store_bytes_per_second=400.0,
    weight_bytes_per_second=1e6,
    step_seconds=1e-4,
    ends_seconds=1e-3,
    memory_bytes_per_second=1e12,
    device_memory_bytes=1e5,
    host_memory_bytes=0.0,
    inside=FAST,
    between=FAST,
)
CACHE = cache_bytes(LOAD, Spread(), 1)

rates = st.floats(1e2, 1e9)
machines = st.builds(
    Machine,
    link_bytes_per_second=st.none() | rates,
    disk_bytes_per_second=rates,
    store_bytes_per_second=rates,
    weight_bytes_per_second=rates,
    step_seconds=st.floats(0, 1),
    ends_seconds=st.floats(0, 1),
    memory_bytes_per_second=rates,
    device_memory_bytes=st.floats(1e7, 2e7),
    host_memory_bytes=st.floats(0, 1e4),
    inside=st.builds(Exchange, st.floats(0, 1e-2), rates),
    between=st.builds(Exchange, st.floats(0, 1e-2), rates),
    processors=st.none() | st.integers(1, 8),
)
spreads = st.builds(
    lambda tensor, stages, batch, source: Spread(
        2**tensor,
        2**stages,
        devices_per_host=2 ** min(tensor, 3),
        batch=batch,
        source=source,
    ),
    st.integers(0, 6),
    st.integers(0, 3),
    st.integers(1, 64),
    st.sampled_from(["disk", "store"]),
)
loads = st.builds(
    Load,
    st.sampled_from([CONFIG, models.from_hf(OPT | {"num_hidden_layers": LAYERS})]),
    st.floats(1, 1e7),
    st.floats(1, 1e7),
    context=st.integers(1, 8),
)


def figures(load: Load, spread: Spread, machine: Machine) -> Any:
    try:
        return estimate(load, spread, machine)
    except DoesNotFitError:
        return None


@given(loads, spreads, machines)
def test_the_binding_stage_is_the_slowest(load: Load, spread: Spread, machine: Machine) -> None:
    found = figures(load, spread, machine)
    if found is None:
        return
    step = found.compute_seconds + found.gather_seconds
    stages = {"read": found.read_seconds, "transfer": found.transfer_seconds, "step": step}
    assert found.seconds == max(stages.values())
    if found.binding in ("compute", "gather"):
        assert found.seconds == step
        longer = "gather" if found.gather_seconds > found.compute_seconds else "compute"
        assert found.binding == longer
    else:
        assert found.seconds == stages[found.binding]
    # Every sequence has a token once all lanes have been in all stages.
    turns = max(spread.stages, spread.groups)
    assert found.tokens_per_second == pytest.approx(spread.batch / (turns * found.seconds))


@given(loads, spreads, machines, st.sampled_from(["tensor", "stages"]))
def test_more_devices_never_have_more_bytes_each(
    load: Load, spread: Spread, machine: Machine, which: str
) -> None:
    # More hosts, each with as many devices; then each host has no more to read either.
    doubled = 2 * getattr(spread, which)
    if doubled > LAYERS and which == "stages":
        return
    per_host = spread.devices_per_host
    if which == "tensor" and per_host < 8:
        per_host *= 2
    wider = replace(spread, devices_per_host=per_host, **{which: doubled})
    few, many = figures(load, spread, machine), figures(load, wider, machine)
    if few is None or many is None:
        return
    assert many.device_bytes <= few.device_bytes
    assert many.transferred_bytes <= few.transferred_bytes * (1 + 1e-9) + 1e-6
    if per_host == spread.devices_per_host:
        assert many.read_bytes <= few.read_bytes * (1 + 1e-9) + 1e-6


@pytest.mark.parametrize("shares_memory", [True, False])
@pytest.mark.parametrize(("device", "host"), [(0, 0), (5000, 0), (5000, 2000), (10**6, 0)])
def test_one_device_takes_what_the_plan_is_predicted_to_take(
    device: int, host: int, shares_memory: bool
) -> None:
    buffers = 0 if shares_memory else 4 * 1000
    machine = replace(
        MACHINE,
        link_bytes_per_second=None if shares_memory else MACHINE.link_bytes_per_second,
        device_memory_bytes=float(CACHE + buffers + device),
        # Of the plan's host budget the ring takes some.
        host_memory_bytes=0.0 if shares_memory else float(host),
    )
    found = estimate(LOAD, Spread(), machine)
    demands = [Demand(f"{i}", 1000, 1000, 1, 1000) for i in range(LAYERS + 1)]
    ring = (2 + 2 + 1 + shares_memory) * 1000
    plan = make_plan(
        demands,
        fixed=FixedCosts(device=(("KV cache", CACHE),)),
        device_budget_bytes=int(machine.device_memory_bytes),
        host_budget_bytes=ring + int(machine.host_memory_bytes),
        shares_memory=shares_memory,
    )
    costs = Costs(
        record_seconds=(1e-4 + 1000 / 1e6,) * LAYERS + (1000 / 1e6,),
        ends_seconds=1e-3 + CACHE / 1e12,
        readings={1: Reading(1000.0)},
        reads=1,
        cached=False,
        ring_bytes_per_second=machine.link_bytes_per_second,
        kept_bytes_per_second=machine.link_bytes_per_second,
        processors=1,
    )
    predicted = predict(plan, costs)
    # A record per tier is placed otherwise at most.
    assert found.read_seconds == pytest.approx(predicted.read_seconds, abs=1000 / 1000.0)
    assert found.transfer_seconds == pytest.approx(predicted.transfer_seconds, abs=1000 / 5000)
    assert found.compute_seconds == pytest.approx(predicted.compute_seconds, rel=1e-9)
    assert found.gather_seconds == predicted.gather_seconds == 0
    if device in (0, 10**6):
        assert (found.binding, found.seconds) == (predicted.binding, pytest.approx(predicted.seconds))


def test_a_gather_that_was_measured_costs_what_was_measured() -> None:
    measured = Gathering(latency_seconds=7e-5, bytes_per_second=3e9)
    for members in (2, 4, 8):
        exchange = exchange_of(measured, members)
        assert exchange.seconds(10**6, members) == pytest.approx(measured.seconds(10**6))
    assert Exchange(1.0, 1.0).seconds(100, 1) == 0.0


def test_four_gathers_a_layer_cross_hosts_and_the_latency_of_hosts_is_added() -> None:
    slow = replace(MACHINE, inside=Exchange(1e-3, 1e15), between=Exchange(1.0, 1e15))
    inside = estimate(LOAD, Spread(tensor=2, devices_per_host=2), slow)
    across = estimate(LOAD, Spread(tensor=4, devices_per_host=2), slow)
    assert inside.gather_seconds == pytest.approx((4 * LAYERS + 1) * 1e-3, rel=1e-6)
    # Four devices share two key-value heads: their keys and values are gathered too.
    assert across.gather_seconds == pytest.approx((6 * LAYERS + 1) * 1.001, rel=1e-6)


def test_stages_divide_what_is_read_not_how_often() -> None:
    one = estimate(LOAD, Spread(batch=4), replace(MACHINE, device_memory_bytes=4.0 * CACHE + 4000))
    halves = replace(MACHINE, device_memory_bytes=2.0 * CACHE + 4000)
    two, single = (estimate(LOAD, Spread(stages=2, batch=4, lanes=lanes), halves) for lanes in (2, 1))
    assert one.binding == two.binding == single.binding == "read"
    assert two.read_bytes == single.read_bytes == one.read_bytes / 2
    # A token of every sequence takes two passes of half the bytes: in two lanes, because each is served by
    # passes of its own; in one, because the other stage is idle meanwhile.
    assert two.tokens_per_second == pytest.approx(one.tokens_per_second)
    assert single.tokens_per_second == pytest.approx(one.tokens_per_second)
    # Memory is what a second stage brings: for twice the sequences, or for weights.
    more = estimate(LOAD, Spread(stages=2, batch=8), replace(halves, device_memory_bytes=4.0 * CACHE + 4000))
    assert more.tokens_per_second == pytest.approx(2 * one.tokens_per_second)


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"3 stage\(s\) of 2 devices, 4 to a host"):
        Spread(tensor=2, stages=3, devices_per_host=4)
    with pytest.raises(InvalidInputError, match="got 16 stages, expected at most 12"):
        estimate(LOAD, Spread(stages=16), MACHINE)
    with pytest.raises(DoesNotFitError, match="batch of 9 on 1 devices"):
        estimate(LOAD, Spread(batch=9), replace(MACHINE, device_memory_bytes=float(CACHE)))


def test_a_load_counts_the_matrices_of_a_config() -> None:
    load = load_of(CONFIG, 0.5)
    assert load.layer_bytes == 0.5 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
    assert load.stored_bytes == LAYERS * load.layer_bytes + 0.5 * 320 * 64
