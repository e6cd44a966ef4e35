"""Plans: inside their budgets, never worse for a larger one, and refused only when nothing fits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from endor_jax.errors import DoesNotFitError, InvalidInputError
from endor_jax.streaming.plan import Demand, FixedCosts, Plan, Tier, make_plan, spread

MIB = 2**20
PLENTY = 2**50


def demand(i: int, size: int, parts: int = 1) -> Demand:
    return Demand(f"layers.{i}", size * parts - 100, size * parts, parts, size)


equal = st.tuples(st.integers(1, 12), st.integers(1, 50), st.integers(1, 3)).map(
    lambda drawn: [(4096 * drawn[1], drawn[2])] * drawn[0]
)
unequal = st.lists(
    st.tuples(st.integers(1, 50).map(lambda pages: 4096 * pages), st.integers(1, 3)),
    min_size=1,
    max_size=12,
)
budgets = st.integers(0, 700).map(lambda pages: 4096 * pages)
fixed_bytes = st.tuples(st.integers(0, 10**5), st.integers(0, 10**5))
depths = st.integers(1, 4)


def costs(device: int, host: int) -> FixedCosts:
    return FixedCosts(device=(("KV cache", device),), host=(("token embedding", host),))


def plan(
    sizes: Sequence[tuple[int, int]],
    device: int,
    host: int,
    *,
    depth: int = 2,
    fixed: tuple[int, int] = (0, 0),
    shared: bool = False,
) -> Plan | None:
    """The plan, None if nothing fits."""
    try:
        return make_plan(
            [demand(i, size, parts) for i, (size, parts) in enumerate(sizes)],
            fixed=costs(*fixed),
            device_budget_bytes=device,
            host_budget_bytes=host,
            depth=depth,
            shares_memory=shared,
        )
    except DoesNotFitError:
        return None


@given(equal | unequal, st.tuples(budgets, budgets), depths, fixed_bytes, st.booleans())
def test_budgets_hold(
    sizes: list[tuple[int, int]], budget: tuple[int, int], depth: int, fixed: tuple[int, int], shared: bool
) -> None:
    device, host = budget
    made = plan(sizes, device, host, depth=depth, fixed=fixed, shared=shared)
    assume(made is not None)
    assert made is not None
    assert made.fits
    assert made.device_bytes <= device
    assert made.host_bytes <= host
    assert made.count("device") + made.count("host") + made.count("disk") == len(sizes)
    # What fits exactly is accepted, and gives the same.
    exact = plan(sizes, made.device_bytes, made.host_bytes, depth=depth, fixed=fixed, shared=shared)
    assert exact is not None
    assert exact.transferred_bytes_per_pass == made.transferred_bytes_per_pass


@given(equal | unequal, budgets, budgets, depths)
def test_more_device_memory_never_transfers_more(
    sizes: list[tuple[int, int]], device: int, more: int, depth: int
) -> None:
    small, large = (plan(sizes, size, PLENTY, depth=depth) for size in (device, device + more))
    assume(small is not None)
    assert small is not None
    assert large is not None
    assert large.transferred_bytes_per_pass <= small.transferred_bytes_per_pass


@given(equal | unequal, budgets, budgets, budgets, depths)
def test_more_host_memory_never_reads_more(
    sizes: list[tuple[int, int]], device: int, host: int, more: int, depth: int
) -> None:
    small, large = (plan(sizes, device, size, depth=depth) for size in (host, host + more))
    assume(small is not None)
    assert small is not None
    assert large is not None
    assert large.tiers.count("device") == small.tiers.count("device")
    assert large.read_bytes_per_pass <= small.read_bytes_per_pass


@given(equal, budgets, budgets, budgets, budgets, depths)
def test_more_memory_of_either_kind_never_streams_more(
    sizes: list[tuple[int, int]], device: int, host: int, more: int, other: int, depth: int
) -> None:
    small, large = (
        plan(sizes, *pair, depth=depth) for pair in ((device, host), (device + more, host + other))
    )
    assume(small is not None)
    assert small is not None
    assert large is not None
    assert len(large.streamed) <= len(small.streamed)
    assert large.read_bytes_per_pass <= small.read_bytes_per_pass


@given(equal | unequal, depths, fixed_bytes, st.sampled_from(["device", "host"]))
def test_one_byte_less_than_the_minimum(
    sizes: list[tuple[int, int]], depth: int, fixed: tuple[int, int], short: str
) -> None:
    demands = [demand(i, size, parts) for i, (size, parts) in enumerate(sizes)]

    def made(budget: int) -> Plan:
        device, host = (budget, PLENTY) if short == "device" else (4096 * 40, budget)
        return make_plan(
            demands, fixed=costs(*fixed), device_budget_bytes=device, host_budget_bytes=host, depth=depth
        )

    try:
        assume(made(0) is None)  # it fits even into nothing
    except DoesNotFitError as error:
        assume(f" of {short} memory" in error.got)
        least = int(error.expected.split("(")[1].split()[0].replace(",", ""))
    assert made(least).fits
    with pytest.raises(DoesNotFitError) as caught:
        made(least - 1)
    text = str(caught.value)
    assert f"raise {short}_memory (--{short}-memory). The smallest plan:\nrecords" in text
    assert f"({least:,} bytes)" in text
    assert caught.value.exit_code == 3


@given(st.integers(1, 200), st.integers(0, 200))
def test_spread_is_even(total: int, count: int) -> None:
    count = min(count, total)
    chosen = spread(range(total), count)
    assert len(chosen) == count
    gaps = {b - a for a, b in zip(chosen, [*chosen[1:], *(i + total for i in chosen[:1])], strict=True)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_streamed_records_are_spaced() -> None:
    made = plan([(MIB, 1)] * 12, 10 * MIB, PLENTY)
    assert made is not None
    assert made.count("device") == 6
    assert made.streamed == (0, 2, 4, 6, 8, 10)


def test_the_unequal_record_that_matters_is_kept() -> None:
    # One resident of any place fits beside the stream's buffers; the large one saves most.
    made = plan([(MIB, 1), (3 * MIB, 1)], 10 * MIB, PLENTY, depth=1)
    assert made is not None
    assert made.tiers[1] == "device"


def test_where_memory_is_shared_records_are_used_in_their_slots() -> None:
    sizes = [(MIB, 1)] * 10
    apart = plan(sizes, 4 * MIB, 5 * MIB)
    assert apart is not None
    # Two issued ahead, two being read, one waiting for that.
    assert (apart.stream_buffer_bytes, apart.slots) == (4 * MIB, 5)
    shared = plan(sizes, 0, 6 * MIB, shared=True)
    assert shared is not None
    # And the one that ran before.
    assert (shared.stream_buffer_bytes, shared.slots) == (0, 6)
    assert shared.host_bytes == 6 * MIB


def test_fewer_are_issued_ahead_where_only_that_fits() -> None:
    def made(device: int, depth: int | None) -> Plan:
        return make_plan(
            [demand(i, MIB) for i in range(10)],
            fixed=costs(0, 0),
            device_budget_bytes=device,
            host_budget_bytes=5 * MIB,
            depth=depth,
        )

    assert made(4 * MIB, None).depth == 2
    assert made(4 * MIB - 1, None).depth == 1
    assert "1 issued ahead, 2 being read" in repr(made(4 * MIB - 1, None))
    with pytest.raises(DoesNotFitError):  # what was asked for by name is not changed
        made(4 * MIB - 1, 2)
    with pytest.raises(DoesNotFitError, match=r"at least 3 MiB"):
        made(3 * MIB - 1, None)


def test_everything_fits() -> None:
    made = plan([(MIB, 2)] * 5, 10 * MIB, 0)
    assert made is not None
    assert made.tiers == ("device",) * 5
    assert (made.device_bytes, made.host_bytes, made.slots) == (10 * MIB, 0, 0)


def test_the_ring_is_no_larger_than_what_it_can_hold() -> None:
    made = plan([(MIB, 1)], 2 * MIB - 1, PLENTY, depth=4)
    assert made is not None
    assert made.tiers == ("device",)
    made = plan([(MIB, 1)] * 2, 4 * MIB, 0, depth=8)
    assert made is not None
    assert made.count("device") == 2


def test_repr() -> None:
    made = make_plan(
        [demand(i, MIB) for i in range(10)],
        fixed=costs(3 * MIB, 512 * 1024),
        device_budget_bytes=9 * MIB,
        host_budget_bytes=int(7.5 * MIB),
    )
    assert repr(made).splitlines() == [
        "records      2 on the device, 2 in host memory, 6 on disk; 2 issued ahead, 2 being read",
        "per pass     5.999 MiB read, 8 MiB transferred",
        "device       9 MiB of 9 MiB",
        "  KV cache            3 MiB",
        "  resident records    2 MiB",
        "  stream buffers      4 MiB",
        "host         7.5 MiB of 7.5 MiB",
        "  token embedding     512 KiB",
        "  kept records        2 MiB",
        "  ring of 5 slots     5 MiB",
    ]


@pytest.mark.parametrize("depth", [0, -1])
def test_depth_must_be_positive(depth: int) -> None:
    with pytest.raises(InvalidInputError, match=f"depth: got {depth}, expected at least 1"):
        plan([(MIB, 1)], PLENTY, PLENTY, depth=depth)


def test_what_is_staged_counts() -> None:
    """As many records as are in transfer at most, in memory of JAX's own."""
    demands = [demand(i, MIB) for i in range(10)]

    def made(*, staged: bool) -> Plan:
        return make_plan(
            demands,
            fixed=FixedCosts(),
            device_budget_bytes=4 * MIB,
            host_budget_bytes=8 * MIB,
            depth=2,
            staged=staged,
        )

    assert (made(staged=False).staging_bytes, made(staged=True).staging_bytes) == (0, 3 * MIB)
    assert made(staged=False).count("host") == 3
    assert (made(staged=True).count("host"), made(staged=True).host_bytes) == (0, 8 * MIB)
    assert "staging             3 MiB" in repr(made(staged=True))


@pytest.mark.parametrize("name", ["depth", "reads"])
def test_depth_and_reads_below_one(name: str) -> None:
    budgets = {"device_budget_bytes": PLENTY, "host_budget_bytes": PLENTY}
    with pytest.raises(
        InvalidInputError, match=f"{name}: got 0, expected at least 1; leave it at its default"
    ):
        make_plan([demand(0, MIB)], fixed=FixedCosts(), **budgets, **{name: 0})


def test_one_read_at_a_time_where_only_that_fits() -> None:
    demands = [demand(i, MIB) for i in range(10)]
    made = make_plan(
        demands, fixed=FixedCosts(), device_budget_bytes=3 * MIB, host_budget_bytes=2 * MIB, reads=4
    )
    assert (made.depth, made.reads, made.queued, made.slots) == (1, 1, 0, 2)


@given(equal, budgets, budgets, st.integers(1, 4))
def test_more_host_memory_never_reads_more_whatever_has_to_be_given_up(
    sizes: list[tuple[int, int]], host: int, more: int, reads: int
) -> None:
    """Also where the depth, or the reads in flight, are fewer for want of memory.

    Where a device has its own, a greater depth takes room of its residents too, and is worth it.
    """

    def made(budget: int) -> Plan | None:
        try:
            return make_plan(
                [demand(i, size, parts) for i, (size, parts) in enumerate(sizes)],
                fixed=FixedCosts(),
                device_budget_bytes=0,
                host_budget_bytes=budget,
                reads=reads,
                shares_memory=True,
            )
        except DoesNotFitError:
            return None

    small, large = made(host), made(host + more)
    assume(small is not None)
    assert small is not None
    assert large is not None
    assert large.read_bytes_per_pass <= small.read_bytes_per_pass


def test_a_depth_that_is_given_stays_where_fewer_reads_fit() -> None:
    demands = [demand(i, MIB) for i in range(10)]
    budgets = {"device_budget_bytes": 0, "host_budget_bytes": 5 * MIB}
    made = make_plan(demands, fixed=FixedCosts(), **budgets, depth=2, reads=4, shares_memory=True)
    assert (made.depth, made.reads, made.slots) == (2, 1, 4)


def test_no_more_slots_than_there_is_to_read_and_to_hold() -> None:
    tiers: tuple[Tier, ...] = ("device", "disk", "device")
    demands = tuple(demand(i, MIB) for i in range(3))
    made = Plan(demands, tiers, FixedCosts(), 2, 0, 0, shares_memory=True, reads=4)
    assert made.slots == 3
