"""What JAX's pools can still give, from figures as a GPU reports them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import DoesNotFitError, OptionError
from endor_jax.streaming.memory_pools import check_pinned_pool, free_in_pool, pinned_pool_bytes

GIB = 2**30


def test_a_preallocated_pool_gives_what_it_has_not_given() -> None:
    stats = {"bytes_limit": 105 * GIB, "bytes_in_use": 5 * GIB, "pool_bytes": 105 * GIB}
    assert free_in_pool(stats) == 100 * GIB
    assert free_in_pool(stats, unclaimed_bytes=30 * GIB) == 100 * GIB  # what is outside of it is not JAX's


def test_a_growing_pool_cannot_take_what_others_hold() -> None:
    stats = {"bytes_limit": 105 * GIB, "bytes_in_use": 5 * GIB, "pool_bytes": 6 * GIB}
    assert free_in_pool(stats) == 100 * GIB
    assert free_in_pool(stats, unclaimed_bytes=20 * GIB) == 21 * GIB


def test_figures_that_are_not_there_limit_nothing() -> None:
    assert free_in_pool({"bytes_limit": 10}) == 10
    assert free_in_pool({"bytes_limit": 10, "bytes_in_use": 4}, unclaimed_bytes=1) == 6


amounts = st.integers(0, 2**50)


@given(limit=amounts, used=amounts, pool=amounts, unclaimed=amounts)
def test_free_is_never_negative_nor_more_than_the_limit(
    limit: int, used: int, pool: int, unclaimed: int
) -> None:
    stats = {"bytes_limit": limit, "bytes_in_use": used, "pool_bytes": pool}
    assert 0 <= free_in_pool(stats, unclaimed_bytes=unclaimed) <= free_in_pool(stats) <= limit


def test_pinned_pool_is_64_gib_unless_set() -> None:
    assert pinned_pool_bytes({}) == pinned_pool_bytes({"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": ""}) == 64 * GIB
    assert pinned_pool_bytes({"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "900"}) == 900 * GIB
    with pytest.raises(
        OptionError, match=r"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB: got 'lots', expected a number"
    ):
        pinned_pool_bytes({"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": "lots"})


def test_a_host_tier_as_large_as_the_pool_fits_and_one_byte_more_does_not() -> None:
    check_pinned_pool(64 * GIB, 64 * GIB)
    with pytest.raises(
        DoesNotFitError,
        match=r"host tier as pinned_host arrays: got a pool of 64 GiB, .* \(68,719,476,737 bytes\)",
    ):
        check_pinned_pool(64 * GIB + 1, 64 * GIB)
