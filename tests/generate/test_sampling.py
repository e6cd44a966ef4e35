"""Sampling: greedy, temperature, nuclei, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from endor_jax.errors import InvalidInputError
from endor_jax.generate.sampling import Sampler, sample


def draws(logits, sampler: Sampler, count: int) -> list[int]:
    random = np.random.default_rng(sampler.seed)
    return [sample(np.asarray(logits, np.float32), sampler, random) for _ in range(count)]


def test_greedy_takes_the_lowest_id_among_equals():
    random = np.random.default_rng(0)
    before = random.bit_generator.state
    assert sample(np.array([0.5, 2.0, 2.0, -1.0], np.float32), Sampler(), random) == 1
    assert random.bit_generator.state == before


def test_temperature_scales_the_odds():
    logits = np.log([0.7, 0.2, 0.1])
    ids = draws(logits, Sampler(temperature=1.0), 20_000)
    np.testing.assert_allclose(np.bincount(ids) / len(ids), [0.7, 0.2, 0.1], atol=0.015)
    squared = np.array([0.49, 0.04, 0.01]) / 0.54
    ids = draws(logits, Sampler(temperature=0.5), 20_000)
    np.testing.assert_allclose(np.bincount(ids) / len(ids), squared, atol=0.015)


@pytest.mark.parametrize(
    ("top_p", "candidates"),
    [(0.01, {3}), (0.49, {3}), (0.51, {3, 0}), (0.79, {3, 0}), (0.81, {3, 0, 2}), (1.0, {0, 1, 2, 3})],
)
def test_the_nucleus_is_exact(top_p, candidates):
    ids = draws(np.log([0.3, 0.05, 0.15, 0.5]), Sampler(temperature=1.0, top_p=top_p), 2000)
    assert set(ids) == candidates


def test_the_nucleus_is_renormalised():
    ids = draws(np.log([0.3, 0.05, 0.15, 0.5]), Sampler(temperature=1.0, top_p=0.6), 20_000)
    assert ids.count(0) / len(ids) == pytest.approx(0.3 / 0.8, abs=0.015)


def test_equals_at_the_edge_of_the_nucleus_go_by_id():
    assert set(draws([0.0] * 8, Sampler(temperature=1.0, top_p=0.5), 1000)) == {0, 1, 2, 3}


def test_top_p_1_keeps_what_rounding_would_drop():
    # The first token's probability rounds to 1, the others are far below the rounding error of the sum.
    logits = np.array([60.0] + [0.0] * 4, np.float32)
    sampler = Sampler(temperature=1.0)

    class Last(np.random.Generator):
        def choice(self, count, p):
            assert count == 5
            return count - 1

    assert sample(logits, sampler, Last(np.random.PCG64(0))) == 4


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e6])
def test_extreme_temperatures_are_no_overflow(temperature):
    ids = draws([3e38, -3e38, 1.0], Sampler(temperature=temperature), 10)
    assert set(ids) <= {0, 1, 2}


def test_a_seed_gives_the_same_tokens_and_another_gives_others():
    logits = np.random.default_rng(5).normal(size=100)
    runs = [draws(logits, Sampler(temperature=1.0, seed=seed), 20) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature -0.1, expected 0 or more"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"top_p": 0.0}, r"top_p 0.0, expected above 0"),
        ({"top_p": 1.01}, r"top_p 1.01"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"seed": -1}, r"seed -1, expected 0 or more"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        Sampler(**settings)
