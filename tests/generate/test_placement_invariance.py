"""Where records are and how far ahead they are read changes no bit; bytes read follow from the plan."""

from __future__ import annotations

import numpy as np
import pytest

import endor_jax as endor
from tests.cases import spread
from tests.generate.budgets import budgets_of_tiers

CONTEXT = 290


def run(path, budgets: tuple[int, int], depth: int):
    """Logits of scoring, tokens of generating, and the plan."""
    batch = np.random.default_rng(0).integers(0, 256, (2, 140))
    with endor.load(
        path, context=CONTEXT, device_memory=budgets[0], host_memory=budgets[1], depth=depth
    ) as model:
        scored = model.logits(batch)
        tokens = [token.id for token in model.generate(batch[0].tolist(), max_tokens=6)]
        return scored, tokens, model.plan


@pytest.fixture(scope="module")
def reference(tiny_checkpoints):
    return {
        name: run(path, budgets_of_tiers(path, context=CONTEXT)["device"], 2)
        for name, path in tiny_checkpoints.items()
    }


@pytest.mark.parametrize(
    ("name", "depth"), [("llama", 1), ("llama", 2), ("llama", 3), ("llama", 4), ("untied", 2), ("opt", 2)]
)
def test_logits_are_bitwise_equal_for_every_budget_and_depth(tiny_checkpoints, reference, name, depth):
    path = tiny_checkpoints[name]
    seen = set()
    for tier, budgets in budgets_of_tiers(path, context=CONTEXT, depth=depth).items():
        scored, tokens, plan = run(path, budgets, depth)
        seen.add(plan.tiers)
        np.testing.assert_array_equal(
            scored.view(np.uint32), reference[name][0].view(np.uint32), err_msg=tier
        )
        assert tokens == reference[name][1]
    assert any("disk" in tiers and "device" not in tiers for tiers in seen)
    assert any(set(tiers) == {"device"} for tiers in seen)
    assert len(seen) >= 3


@pytest.mark.parametrize(
    ("name", "tier"), spread(["llama", "untied", "opt"], ["disk", "all three", "host", "device"], every=3)
)
def test_bytes_read_do_not_depend_on_the_prompt(tiny_checkpoints, name, tier):
    checkpoint = tiny_checkpoints[name]
    device, host = budgets_of_tiers(checkpoint, context=CONTEXT)[tier]
    with endor.load(checkpoint, context=CONTEXT, device_memory=device, host_memory=host) as model:
        counts = []
        for length in (1, 5, 200):
            tokens = list(model.generate([3] * length, max_tokens=4))
            assert len(tokens) == 4
            counts.append((model.statistics.bytes_read, model.statistics.bytes_transferred))
        assert counts[0] == counts[1] == counts[2]
        assert counts[0] == (4 * model.plan.read_bytes_per_pass, 4 * model.plan.transferred_bytes_per_pass)
        assert (counts[0][0] > 0) == (model.plan.count("disk") > 0)


def test_scoring_takes_a_pass_per_context_full_of_tokens(llama):
    device, host = budgets_of_tiers(llama, context=CONTEXT)["disk"]
    with endor.load(llama, context=CONTEXT, device_memory=device, host_memory=host) as model:
        executor = model._pipeline.runner.executor
        # The cache has 384 positions: three chunks of 128.
        for shape, passes in (((1, 1), 1), ((3, 5), 1), ((4, 128), 2), ((1, 290), 1), ((2, 290), 2)):
            before = executor.bytes_read
            model.logits(np.ones(shape, np.int64))
            assert executor.bytes_read - before == passes * model.plan.read_bytes_per_pass
