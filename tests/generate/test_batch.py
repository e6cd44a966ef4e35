"""A batch of prompts of different length: the tokens of one by one, for the reads of one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import InvalidInputError, OptionError
from endor_jax.generate.sampling import Sampler
from tests.cases import spread
from tests.generate.budgets import smallest
from tests.generate.conftest import CONFIGS
from tests.tiny_models import write_tiny

LENGTHS = (1, 5, 130, 17, 2, 200, 64, 128)


def prompts(lengths=LENGTHS):
    random = np.random.default_rng(1)
    return [random.integers(0, 256, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def float32(tmp_path_factory):
    """In float32, where the rounding of products of another shape turns no choice round."""
    made = {}
    for name, config in CONFIGS.items():
        base = tmp_path_factory.mktemp(name)
        endor.convert(write_tiny(base / "source", config, tokenizer=True), base / "dst")
        made[name] = base / "dst"
    return made


@pytest.fixture(scope="module")
def alone(float32):
    """Greedy tokens of each prompt by itself, by the name of the model."""

    @cache
    def completions(name):
        with endor.load(float32[name], context=290) as model:
            return [model.complete(prompt, max_tokens=12) for prompt in prompts()]

    return completions


@pytest.mark.parametrize(
    ("name", "rows"),
    spread(CONFIGS, [(1, None), (3, None), (8, 3), (20, None), (20, 1)], every=3),
    ids=str,
)
def test_greedy_tokens_of_a_ragged_batch_are_those_of_one_by_one(float32, alone, name, rows):
    batch, micro_batch = rows
    with endor.load(float32[name], context=290, batch=batch, micro_batch=micro_batch) as model:
        done = dict(model.complete_batch(prompts(), max_tokens=12))
    assert sorted(done) == list(range(len(LENGTHS)))
    for i, expected in enumerate(alone(name)):
        assert done[i].token_ids == expected.token_ids
        assert (done[i].text, done[i].finish_reason) == (expected.text, expected.finish_reason)


def test_streamed_it_is_the_same_and_reads_what_one_prompt_reads(float32):
    path = float32["llama"]
    with endor.load(path, context=290, batch=8) as model:
        expected = dict(model.complete_batch(prompts(), max_tokens=5))
    device, host = smallest(path, context=290, batch=8)
    with endor.load(path, context=290, batch=8, device_memory=device, host_memory=host) as model:
        assert model.plan.count("disk") == len(model.plan.tiers)
        done = dict(model.complete_batch(prompts(), max_tokens=5))
        together = model.statistics
        alone = model.complete(prompts()[0], max_tokens=5).statistics
    assert {i: c.token_ids for i, c in done.items()} == {i: c.token_ids for i, c in expected.items()}
    # Eight prompts pass through each layer together: as many passes as for one.
    assert together.bytes_read == alone.bytes_read > 0
    assert together.prompt_tokens == sum(LENGTHS)
    assert together.generated_tokens == 5 * len(LENGTHS)


def test_a_batch_costs_cache_and_activations(float32):
    with endor.load(float32["llama"], context=128, batch=1) as model:
        one = dict(model.plan.fixed.device)
    with endor.load(float32["llama"], context=128, batch=4) as model:
        four = dict(model.plan.fixed.device)
    assert four["KV cache"] == 4 * one["KV cache"]
    assert four["activations"] > one["activations"]
    assert four["step temporaries"] > one["step temporaries"]  # copies of keys and values
    assert four["stem and final"] == one["stem and final"]


def test_sampling_does_not_depend_on_the_neighbours(float32):
    sampler = Sampler(temperature=1.0, seed=3, top_k=50)
    with endor.load(float32["llama"], context=290, batch=3) as model:
        done = dict(model.complete_batch(prompts(), max_tokens=9, sampler=sampler))
        for i, prompt in enumerate(prompts()):
            assert done[i].token_ids == model.complete(prompt, max_tokens=9, sampler=sampler).token_ids


def test_completions_come_as_they_end(float32):
    with endor.load(float32["llama"], context=290, batch=2) as model:
        texts = [model.complete(prompt, max_tokens=12).text for prompt in prompts()]
        # A stop string ends the first at once, and the third takes its row.
        stop = texts[0][:1]
        assert stop
        ended = list(model.complete_batch(prompts()[:3], max_tokens=12, stop=[stop]))
        assert ended[0][0] == 0
        assert ended[0][1].finish_reason == "stop"
        assert ended[0][1].text == ""
        for index, completion in ended:
            assert completion.text == texts[index].split(stop)[0]


def test_what_cannot_be_done_is_refused_before_anything_is_generated(float32):
    with endor.load(float32["llama"], context=290, batch=2) as model:
        with pytest.raises(InvalidInputError, match="prompt 2 of 2, generation: got 280 prompt tokens"):
            model.complete_batch([[1, 2], [1] * 280], max_tokens=20)
        with pytest.raises(InvalidInputError, match="prompt 2 of 2, token ids: got none"):
            model.complete_batch([[1, 2], []])
        with pytest.raises(OptionError, match="the string 'x'"):
            model.complete_batch([[1]], stop="x")
        assert list(model.complete_batch([])) == []
    with pytest.raises(OptionError, match="0 sequences, expected at least 1"):
        endor.load(float32["llama"], batch=0)
