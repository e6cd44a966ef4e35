"""What a plan and its prediction suggest: every sentence, and when there is none."""

from __future__ import annotations

from dataclasses import replace

from endor_jax.store.disk_rates import Reading
from endor_jax.streaming.advice import Free, advise
from endor_jax.streaming.plan import Demand, FixedCosts, Plan, make_plan
from endor_jax.streaming.prediction import Costs, predict

RECORDS, SIZE = 20, 1000
DEMANDS = tuple(Demand(f"layers.{i}", SIZE, SIZE, 1, SIZE) for i in range(RECORDS))
DISK_BOUND = Costs(
    record_seconds=(0.001,) * RECORDS,
    ends_seconds=0.0,
    readings={1: Reading(10_000.0)},
    reads=1,
    cached=False,
    ring_bytes_per_second=1e9,
    kept_bytes_per_second=1e9,
    processors=2,
)
NOTHING_FREE = Free(0, 0)


def plan_of(
    device: int, host: int, *, shares_memory: bool = False, embedding: int = 0, devices: int = 1
) -> Plan:
    return make_plan(
        DEMANDS,
        fixed=FixedCosts(host=(("embedding", embedding),)),
        device_budget_bytes=device,
        host_budget_bytes=host,
        reads=1,
        shares_memory=shares_memory,
        devices=devices,
    )


def test_nothing_is_said_where_everything_is_on_the_device() -> None:
    assert advise(plan_of(RECORDS * SIZE, 0), DISK_BOUND, Free(10**9, 10**9)) == ()


def test_offloading_is_pointless_where_everything_fits_on_the_device() -> None:
    (sentence,) = advise(plan_of(10 * SIZE, 4 * SIZE), DISK_BOUND, Free(RECORDS * SIZE, 0))
    assert sentence.startswith(
        "Offloading is pointless: all records fit on the device, in 19.53 KiB of 19.53 KiB"
    )
    assert "With --device-memory 20000 (19.53 KiB) 50 tokens/s are predicted" in sentence


def test_where_memory_is_shared_the_host_s_share_has_to_fit_too() -> None:
    plan = plan_of(10 * SIZE, 10 * SIZE, shares_memory=True, embedding=500)
    everything = RECORDS * SIZE
    assert "pointless" not in " ".join(advise(plan, DISK_BOUND, Free(everything + 499, everything + 499)))
    assert "pointless" in advise(plan, DISK_BOUND, Free(everything + 500, everything + 500))[0]


def test_devices_that_share_one_memory_need_room_for_each_of_them() -> None:
    plan = plan_of(10 * SIZE, 30 * SIZE, shares_memory=True, embedding=500, devices=4)
    room = 4 * RECORDS * SIZE + 500
    assert "pointless" not in " ".join(advise(plan, DISK_BOUND, Free(room - 1, room - 1)))
    sentence, *_ = advise(plan, DISK_BOUND, Free(room, room))
    assert sentence.startswith(
        "Offloading is pointless: all records fit on each of the 4 devices, in 19.53 KiB of 19.65 KiB"
    )


def test_a_little_more_device_memory_that_holds_everything_is_named_with_what_it_gives() -> None:
    plan = plan_of(RECORDS * SIZE - 1, 5 * SIZE)
    free = Free(RECORDS * SIZE - 1, 0)
    assert not any("more device memory" in sentence for sentence in advise(plan, DISK_BOUND, free))
    shared = plan_of(RECORDS * SIZE - 1, 10 * SIZE, shares_memory=True)
    host = replace(shared, fixed=FixedCosts(host=(("embedding", 10**6),)), host_budget_bytes=2 * 10**6)
    on_disk = replace(host, tiers=("disk", *["device"] * (RECORDS - 1)))
    slow = replace(DISK_BOUND, readings={1: Reading(1000.0)})
    (sentence, *_) = advise(on_disk, slow, Free(RECORDS * SIZE, 0))
    assert sentence.startswith(
        "1 B more device memory puts everything on the device. With --device-memory 20000"
    )
    assert "50 tokens/s are predicted, 1 as it is" in sentence


def test_a_little_more_device_memory_may_make_the_disk_needless() -> None:
    sentence, *_ = advise(plan_of(14 * SIZE, 9 * SIZE), DISK_BOUND, Free(int(15.4 * SIZE), 0))
    assert sentence.startswith("1000 B more device memory makes reading from disk needless.")


def test_a_little_more_device_memory_may_help_much_even_so() -> None:
    sentence, *_ = advise(plan_of(14 * SIZE, 7 * SIZE), DISK_BOUND, Free(int(15.4 * SIZE), 0))
    assert sentence.startswith("1000 B more device memory would help much. With --device-memory 15000")
    assert not any(
        "would help much" in said for said in advise(plan_of(14 * SIZE, 7 * SIZE), DISK_BOUND, NOTHING_FREE)
    )


def test_a_little_more_is_not_worth_a_word_where_it_gains_little() -> None:
    fast = replace(DISK_BOUND, readings={1: Reading(1e9)})
    assert advise(plan_of(10 * SIZE, 4 * SIZE), fast, Free(11 * SIZE, 0)) == ()


def test_host_memory_that_is_free_but_not_given_is_named() -> None:
    plan = plan_of(4 * SIZE, 4 * SIZE)
    said = " ".join(advise(plan, DISK_BOUND, Free(4 * SIZE, 100 * SIZE)))
    assert "Host memory has room that is not used: with --host-memory 20000" in said
    assert "50 tokens/s are predicted" in said
    assert "Host memory" not in " ".join(advise(plan, DISK_BOUND, NOTHING_FREE))
    shared = plan_of(4 * SIZE, 10 * SIZE, shares_memory=True)
    assert "Host memory" not in " ".join(advise(shared, DISK_BOUND, Free(4 * SIZE, 100 * SIZE)))


def test_what_the_page_cache_does_not_hold_is_named_where_it_binds() -> None:
    plan = plan_of(4 * SIZE, 4 * SIZE)
    (sentence,) = advise(plan, DISK_BOUND, NOTHING_FREE)
    assert sentence.startswith(
        f"Every pass waits for {plan.read_bytes_per_pass / 1024:.4g} KiB from the disk"
    )
    assert advise(plan, replace(DISK_BOUND, cached=True), NOTHING_FREE) == ()
    fast = replace(DISK_BOUND, readings={1: Reading(1e9)})
    assert predict(plan, fast).binding != "read"
    assert advise(plan, fast, NOTHING_FREE) == ()
