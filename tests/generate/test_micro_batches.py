"""Micro-batches: many sequences share a pass, and neither the others nor where caches wait change a bit."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import endor_jax as endor
from endor_jax.errors import DoesNotFitError, OptionError
from endor_jax.generate.caches import ON_DEVICE, Caches
from endor_jax.generate.pipeline import Pipeline
from endor_jax.generate.placement import (
    CHUNK,
    MOST_ROWS,
    Geometry,
    chunk_for,
    micro_batches_for,
    place_model,
)
from endor_jax.generate.runner import Feed, Runner, advance
from tests.generate.budgets import HUGE, described, smallest

LENGTHS = (150, 2, 17, 30, 3, 129)
CONTEXT = 290


def prompts(lengths=LENGTHS) -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, length).tolist() for length in lengths]


def with_tier(runner: Runner, tier) -> Runner:
    return replace(runner, shape=replace(runner.shape, cache_tier=tier))


def logits_of(runner: Runner, own: list[list[int]], passes: int = 3) -> list[np.ndarray]:
    """Logits after the prompts and after some more tokens of each."""
    caches = runner.new_caches(len(own))
    made = [advance(runner, caches, [Feed(i, ids, 0) for i, ids in enumerate(own)])]
    for k in range(passes):
        made.append(advance(runner, caches, [Feed(i, [7 + k], len(ids) + k) for i, ids in enumerate(own)]))
    return made


def check_bits(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


@given(sequences=st.integers(1, 500), most=st.integers(1, 64))
def test_micro_batches_are_few_equal_and_hold_all(sequences, most):
    count, rows = micro_batches_for(sequences, most)
    assert rows <= most
    assert 0 <= count * rows - sequences < count  # no micro-batch has more than one row to spare
    assert (count - 1) * most < sequences  # with one fewer they would not fit


@given(tokens=st.integers(1, 3 * CHUNK))
def test_prompts_shorter_than_a_chunk_take_the_smallest_that_holds_them(tokens):
    size = chunk_for(tokens)
    assert size in (32, 64, CHUNK)
    assert size == CHUNK or tokens <= size
    assert size == 32 or tokens > size // 2


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_a_micro_batch_is_what_its_rows_are_by_themselves(tiny_checkpoints, micro_batch):
    """In bfloat16, where every sum of another order shows: the others of the batch change no bit."""
    own = prompts()
    with endor.load(
        tiny_checkpoints["llama"], context=CONTEXT, batch=len(own), micro_batch=micro_batch
    ) as model:
        runner = model._pipeline.runner
        together = logits_of(runner, own)
        count, rows = micro_batches_for(len(own), micro_batch)
        assert runner.new_caches(len(own)).rows == rows
        for first in range(0, len(own), rows):
            alone = own[first : first + rows]
            if len(alone) == rows:
                check_bits([part[first : first + rows] for part in together], logits_of(runner, alone))
        assert count == -(-len(own) // rows)


def test_prompts_do_not_depend_on_the_rows_of_a_micro_batch(tiny_checkpoints):
    """They pass one after another, whatever shares the layer with them."""
    made = []
    for micro_batch in (2, None):
        with endor.load(
            tiny_checkpoints["opt"], context=CONTEXT, batch=len(LENGTHS), micro_batch=micro_batch
        ) as model:
            made.append(logits_of(model._pipeline.runner, prompts(), passes=0))
    for other in made[1:]:
        check_bits(other, made[0])


@pytest.mark.parametrize(("name", "micro_batch"), [("llama", 1), ("llama", 4), ("opt", None)])
def test_caches_that_wait_in_host_memory_change_no_bit(tiny_checkpoints, name, micro_batch):
    with endor.load(
        tiny_checkpoints[name], context=CONTEXT, batch=len(LENGTHS), micro_batch=micro_batch
    ) as model:
        assert model._pipeline.runner.shape.cache_tier == "device"
        expected = logits_of(with_tier(model._pipeline.runner, "device"), prompts())
        check_bits(logits_of(with_tier(model._pipeline.runner, "host"), prompts()), expected)


def test_streamed_with_caches_in_host_memory_it_is_the_same(tiny_checkpoints):
    path = tiny_checkpoints["untied"]
    with endor.load(path, context=CONTEXT, batch=len(LENGTHS), micro_batch=2) as model:
        expected = dict(model.complete_batch(prompts(), max_tokens=6))
    _, shape = described(path, CONTEXT, len(LENGTHS))
    budgets = {
        "device_memory": least(path, replace(shape, micro_batch=2), shares_memory=True),
        "host_memory": smallest(path, context=CONTEXT)[1],
    }
    with endor.load(path, context=CONTEXT, batch=len(LENGTHS), micro_batch=2, **budgets) as model:
        assert model.plan.count("disk") == len(model.plan.tiers)
        model._pipeline = Pipeline({0: with_tier(model._pipeline.runner, "host")})
        done = dict(model.complete_batch(prompts(), max_tokens=6))
        session = [token.id for token in model.generate(prompts()[0], max_tokens=6)]
    assert {i: c.token_ids for i, c in done.items()} == {i: c.token_ids for i, c in expected.items()}
    assert len(session) == 6


def test_few_caches_are_on_the_device_at_once(tiny_checkpoints, monkeypatch):
    most, waiting = 0, set()
    take = Caches.take

    def counted(self, place, *, then=None):
        nonlocal most
        cache = take(self, place, then=then)
        shape = cache.keys.shape
        alive = [a for a in jax.live_arrays() if a.shape == shape and not a.is_deleted()]
        most = max(most, sum(a.sharding.memory_kind == "device" for a in alive))
        waiting.add(sum(a.sharding.memory_kind == "pinned_host" for a in alive))
        return cache

    monkeypatch.setattr(Caches, "take", counted)
    with endor.load(tiny_checkpoints["llama"], context=CONTEXT, batch=6, micro_batch=2) as model:
        logits_of(with_tier(model._pipeline.runner, "host"), prompts())
    # Keys and values. Nine layers of three micro-batches.
    assert 2 * 2 <= most <= 2 * ON_DEVICE
    assert max(waiting) <= 2 * (9 * 3 + ON_DEVICE)


def place(path, shape: Geometry, device: int, host: int = HUGE, *, shares_memory: bool = False):
    manifest, _ = described(path, CONTEXT)
    return place_model(
        manifest, shape, device_budget_bytes=device, host_budget_bytes=host, shares_memory=shares_memory
    )


def least(path, shape: Geometry, *, shares_memory: bool = False) -> int:
    with pytest.raises(DoesNotFitError) as refused:
        place(path, shape, 0, shares_memory=shares_memory)
    return int(refused.value.expected.split("(")[1].split(" ")[0].replace(",", ""))


def test_caches_wait_in_host_memory_only_where_they_do_not_fit_on_the_device(llama):
    _, shape = described(llama, CONTEXT, 64)
    on_device = least(llama, replace(shape, cache_tier="device"))
    on_host = least(llama, shape)
    assert on_host < on_device
    for budget, tier in ((on_device, "device"), (on_device - 1, "host"), (on_host, "host")):
        chosen, plan = place(llama, shape, budget)
        assert (chosen.cache_tier, chosen.rows) == (tier, MOST_ROWS)
        assert plan.device_bytes <= budget
        device, host = dict(plan.fixed.device), dict(plan.fixed.host)
        if tier == "device":
            assert device["KV cache"] == chosen.cache_bytes
            assert "KV cache, waiting" not in host
        else:
            assert device["KV cache, in use"] == ON_DEVICE * chosen.layer_cache_bytes
            assert host["KV cache, waiting"] == chosen.cache_bytes
    with pytest.raises(DoesNotFitError, match="micro_batch=16"):
        place(llama, shape, on_host - 1)


def test_where_memory_is_shared_caches_stay_where_they_are(llama):
    _, shape = described(llama, CONTEXT, 64)
    budget = least(llama, shape, shares_memory=True)
    chosen, plan = place(llama, shape, budget, shares_memory=True)
    assert chosen.cache_tier == "device"
    assert dict(plan.fixed.device)["KV cache"] == chosen.cache_bytes


def test_fewer_rows_in_a_micro_batch_take_less_and_are_named_where_they_would_fit(llama):
    _, shape = described(llama, CONTEXT, 64)
    sizes = [least(llama, replace(shape, micro_batch=rows), shares_memory=True) for rows in (32, 8, 1)]
    assert sizes[0] > sizes[1] > sizes[2]
    with pytest.raises(DoesNotFitError, match=r"pass micro_batch=8 \(--micro-batch 8\), which fits"):
        place(llama, shape, sizes[1], shares_memory=True)
    chosen, _ = place(llama, replace(shape, micro_batch=8), sizes[1], shares_memory=True)
    assert chosen.rows == 8
    with pytest.raises(DoesNotFitError) as refused:
        place(llama, shape, sizes[2] - 1, shares_memory=True)
    assert "micro_batch" not in str(refused.value)


def test_a_micro_batch_of_no_rows_is_refused(llama):
    with pytest.raises(OptionError, match="micro-batch: got 0 rows, expected at least 1"):
        endor.load(llama, micro_batch=0)
