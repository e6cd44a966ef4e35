"""Sampling: greedy, temperature, top_k, nuclei, min_p, repetition penalty, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import InvalidInputError, OptionError
from endor_jax.generate.sampling import Sampler, candidates, sample

VALUES = st.floats(-30, 30, width=32)
LOGITS = st.lists(VALUES, min_size=1, max_size=60) | st.lists(st.integers(-2, 2), min_size=1, max_size=20)
SAMPLERS = st.builds(
    Sampler,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.integers(0, 70),
    top_p=st.just(1.0) | st.floats(0.01, 1),
    min_p=st.just(0.0) | st.floats(0, 1),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.3, 5.0]),
)


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


def sample_as_before(logits: np.ndarray, sampler: Sampler, random: np.random.Generator) -> int:
    """`sample` as it was with temperature, top_p and seed only, kept word for word."""
    with np.errstate(over="ignore"):
        scaled = (logits.astype(np.float64) - logits.max()) / sampler.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    before = np.cumsum(ranked) - ranked
    kept = int(np.count_nonzero(before < sampler.top_p)) if sampler.top_p < 1 else len(ranked)
    ranked = ranked[:kept] / ranked[:kept].sum()
    return int(order[random.choice(kept, p=ranked)])


@given(logits=LOGITS, sampler=SAMPLERS, seed=st.integers(0, 1000))
def test_without_the_newer_settings_tokens_are_what_they_were(logits, sampler, seed):
    sampler = dataclasses.replace(sampler, top_k=0, min_p=0.0, repetition_penalty=1.0)
    logits = np.asarray(logits, np.float32)
    randoms = np.random.default_rng(seed), np.random.default_rng(seed)
    for _ in range(5):
        assert sample(logits, sampler, randoms[0], seen=[0]) == sample_as_before(logits, sampler, randoms[1])


def test_top_k_keeps_the_largest_and_what_equals_the_last_of_them():
    logits = np.array([1, 5, 3, 3, 0, 4], np.float32)

    def kept(k: int) -> list[int]:
        return candidates(logits, Sampler(temperature=1.0, top_k=k))[0].tolist()

    assert [kept(1), kept(2), kept(3), kept(4)] == [[1], [1, 5], [1, 5, 2, 3], [1, 5, 2, 3]]
    assert kept(6) == kept(0) == kept(1000) == [1, 5, 2, 3, 0, 4]


def test_min_p_is_a_share_of_the_largest_probability():
    logits = np.log(np.array([0.3, 0.05, 0.15, 0.5], np.float32))
    for min_p, kept in [(0.0, [3, 0, 2, 1]), (0.29, [3, 0, 2]), (0.31, [3, 0]), (0.61, [3]), (1.0, [3])]:
        ids, probabilities = candidates(logits, Sampler(temperature=1.0, min_p=min_p))
        assert ids.tolist() == kept
        assert probabilities.dtype == np.float64
        np.testing.assert_allclose(probabilities.sum(), 1)


def test_a_repeated_token_is_penalised_once_and_the_right_way():
    logits = np.array([2.0, -1.0, 1.5, 0.0], np.float32)
    sampler = Sampler(temperature=1.0, repetition_penalty=2.0)
    ids, probabilities = candidates(logits, sampler, seen=[0, 0, 1, 3, 3])
    expected = np.exp([1.0, -2.0, 1.5, 0.0])
    np.testing.assert_allclose(probabilities[np.argsort(ids)], expected / expected.sum(), rtol=1e-12)


def test_greedy_with_a_penalty_takes_the_largest_penalised_logit():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    random = np.random.default_rng(0)
    sampler = Sampler(repetition_penalty=1.2)
    tokens = []
    for _ in range(4):
        tokens.append(sample(logits, sampler, random, seen=[2, *tokens]))
    assert tokens == [0, 1, 0, 0]
    assert sample(logits, Sampler(), random, seen=[0]) == 0
    assert logits.tolist() == np.array([2.0, 1.9, -1.0], np.float32).tolist()


def test_seen_ids_past_the_vocabulary_are_left_out_and_negative_ones_refused():
    logits, random = np.array([1.0, 0.9], np.float32), np.random.default_rng(0)
    sampler = Sampler(repetition_penalty=1.5)
    assert sample(logits, sampler, random, seen=[2, 99]) == 0
    assert sample(logits, sampler, random, seen=[99, 0]) == 1
    with pytest.raises(InvalidInputError, match="token ids: got -1, expected 0 or more; encode text first"):
        sample(logits, sampler, random, seen=[0, -1])


@pytest.mark.parametrize("penalty", [1e-300, 1e300])
def test_extreme_penalties_are_no_overflow(penalty):
    for temperature in (0.0, 1.0):
        sampler = Sampler(temperature=temperature, repetition_penalty=penalty)
        logits = np.array([3e38, -3e38, 1.0], np.float32)
        assert sample(logits, sampler, np.random.default_rng(0), seen=[0, 1]) in {0, 1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_logits_without_a_finite_maximum_are_refused(bad, temperature):
    logits = np.array([float("-inf"), float(bad)], np.float32)
    with pytest.raises(InvalidInputError, match=f"logits: got a maximum of {bad}, .*--dtype bfloat16"):
        sample(logits, Sampler(temperature=temperature), np.random.default_rng(0))


def by_transformers(logits: np.ndarray, sampler: Sampler, seen: list[int]) -> np.ndarray:
    """Float64 probabilities by transformers' own processors, in the order of `generate`."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList()
    if sampler.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampler.repetition_penalty))
    if sampler.temperature > 0:
        steps.append(TemperatureLogitsWarper(sampler.temperature))
    if sampler.top_k:
        steps.append(TopKLogitsWarper(sampler.top_k))
    if sampler.top_p < 1:
        steps.append(TopPLogitsWarper(sampler.top_p))
    if sampler.min_p:
        steps.append(MinPLogitsWarper(sampler.min_p))
    ids: Any = torch.tensor([seen], dtype=torch.int64)
    scores = steps(ids, torch.tensor(logits[None], dtype=torch.float64))
    return torch.softmax(scores, dim=-1)[0].numpy()


@pytest.mark.reference
@given(logits=LOGITS, sampler=SAMPLERS, data=st.data())
def test_candidates_and_probabilities_are_those_of_transformers(logits, sampler, data):
    logits = np.asarray(logits, np.float32)
    seen = data.draw(st.lists(st.integers(0, len(logits) + 3), max_size=10))
    expected = by_transformers(logits, sampler, seen)
    ids, probabilities = candidates(logits, sampler, seen=seen)
    # Which of several equals fill the nucleus is by id here and by an unstable sort there: how many is not.
    assert len(ids) == np.count_nonzero(expected)
    np.testing.assert_allclose(probabilities, np.sort(expected)[::-1][: len(ids)], rtol=1e-9)
    edge = 0 if sampler.top_p == 1 else probabilities[-1] * (1 + 1e-9)
    assert set(ids[probabilities > edge].tolist()) == set(np.flatnonzero(expected > edge).tolist())


@pytest.mark.reference
def test_the_steps_come_in_the_order_of_transformers_generate():
    transformers = pytest.importorskip("transformers")
    source = inspect.getsource(transformers.GenerationMixin._get_logits_processor)
    steps = ["RepetitionPenaltyLogits", "TemperatureLogits", "TopKLogits", "TopPLogits", "MinPLogits"]
    places = [re.search(rf"\b{step}\w+\(", source) for step in steps]
    starts = [place.start() for place in places if place]
    assert len(starts) == 5
    assert starts == sorted(starts)


@pytest.mark.reference
@given(logits=LOGITS, data=st.data())
def test_penalised_greedy_is_that_of_transformers(logits, data):
    logits = np.asarray(logits, np.float32)
    seen = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=10))
    sampler = Sampler(repetition_penalty=1.3)
    chosen = sample(logits, sampler, np.random.default_rng(0), seen=seen)
    expected = by_transformers(logits, sampler, seen)
    assert expected[chosen] == expected.max()


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
        ({"top_k": -1}, r"top_k -1, expected 0 or more"),
        ({"min_p": -0.1}, r"min_p -0.1, expected 0 to 1"),
        ({"min_p": 1.1}, r"min_p 1.1"),
        ({"min_p": float("nan")}, "min_p nan"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty 0.0, expected above 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty -1.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty inf"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty nan"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(OptionError, match=message):
        Sampler(**settings)
