"""Two models on the same tokens: every figure equals a float64 computation from the logits of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.evaluate.compare import Comparison, compare, layer_matrices
from endor_jax.evaluate.divergence import POSITIONS, compare_tokens, logits_bytes
from endor_jax.evaluate.perplexity import perplexity_of_blocks
from endor_jax.store.manifest import read_manifest
from tests.tiny_models import LLAMA, write_tiny

LENGTH = 100
"""More than two pieces of positions, and no whole number of them."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A tiny model dense and pruned, and others that do not go with it."""
    base = tmp_path_factory.mktemp("compare")
    source = write_tiny(base / "source", tokenizer=True)
    made = {name: base / name for name in ("dense", "half", "larger", "no tokenizer", "other tokenizer")}
    endor.convert(source, made["dense"], prune="none")
    endor.convert(source, made["half"], prune="magnitude", sparsity=0.5)
    larger = LLAMA | {"vocab_size": 330}
    endor.convert(write_tiny(base / "s1", larger, tokenizer=True), made["larger"], prune="none")
    endor.convert(write_tiny(base / "s2"), made["no tokenizer"], prune="none")
    other = write_tiny(base / "s3", tokenizer=True)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    endor.convert(other, made["other tokenizer"], prune="none")
    return made


@pytest.fixture(scope="module")
def blocks() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 320, (5, LENGTH)).astype(np.int32)


@pytest.fixture(scope="module")
def comparison(checkpoints, blocks) -> Comparison:
    return compare(checkpoints["dense"], checkpoints["half"], blocks, batch=2, generated_tokens=8)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def reference(checkpoints, blocks) -> dict[str, np.ndarray]:
    """What the definitions give in float64, without a block's last position."""
    logs = []
    for name in ("dense", "half"):
        with endor.load(checkpoints[name], context=LENGTH, batch=5) as model:
            logs.append(log_softmax(model.logits(blocks))[:, :-1])
    a, b = logs
    losses = [-np.take_along_axis(each, blocks[:, 1:, None], axis=2)[..., 0] for each in logs]
    return {
        "losses_a": losses[0],
        "losses_b": losses[1],
        "divergence": (np.exp(a) * (a - b)).sum(axis=-1),
        "agrees": a.argmax(axis=-1) == b.argmax(axis=-1),
    }


@pytest.mark.parametrize("name", ["losses_a", "losses_b", "divergence"])
def test_every_token_as_in_float64(comparison, reference, name):
    figures = getattr(comparison.figures, name)
    assert figures.dtype == np.float32
    assert figures.shape == (5, LENGTH - 1)
    np.testing.assert_allclose(figures, reference[name], rtol=2e-5, atol=2e-6)


def test_agreement_is_that_of_the_largest_logits(comparison, reference):
    np.testing.assert_array_equal(comparison.figures.agrees, reference["agrees"])
    assert 0 < comparison.agreement == reference["agrees"].mean() < 1


def test_the_summary_is_of_all_tokens(comparison, reference):
    kl, count = reference["divergence"].ravel(), 5 * (LENGTH - 1)
    assert comparison.tokens == count
    divergence = comparison.divergence
    assert divergence.mean == pytest.approx(kl.mean(), rel=1e-5)
    assert divergence.median == pytest.approx(np.median(kl), rel=1e-4)
    assert divergence.percentile_99 == pytest.approx(np.percentile(kl, 99), rel=1e-4)
    assert divergence.standard_error == pytest.approx(kl.std(ddof=1) / count**0.5, rel=1e-4)
    difference = (reference["losses_b"] - reference["losses_a"]).ravel()
    assert comparison.ratio == pytest.approx(np.exp(difference.mean()), rel=1e-5)
    expected = np.exp(difference.mean()) * difference.std(ddof=1) / count**0.5
    assert comparison.ratio_standard_error == pytest.approx(expected, rel=1e-4)
    both = comparison.a.perplexity, comparison.b.perplexity
    assert comparison.ratio == pytest.approx(both[1].value / both[0].value, rel=1e-6)


def test_both_perplexities_are_those_of_perplexity(checkpoints, comparison, blocks):
    for side, name in ((comparison.a, "dense"), (comparison.b, "half")):
        with endor.load(checkpoints[name], context=LENGTH) as model:
            expected = perplexity_of_blocks(model, blocks)
        assert side.perplexity.value == pytest.approx(expected.value, rel=1e-5)
        assert side.perplexity.standard_error == pytest.approx(expected.standard_error, rel=1e-5)
        assert side.perplexity.tokens == expected.tokens


def test_sizes_are_those_of_the_files_and_of_the_layers(checkpoints, comparison):
    for side, name in ((comparison.a, "dense"), (comparison.b, "half")):
        path = checkpoints[name]
        assert side.stored_bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    assert comparison.a.sparsity == 0
    assert comparison.b.sparsity == 0.5
    assert comparison.a.bytes_per_weight > 3.5  # float32
    assert comparison.b.bytes_per_weight < 0.7 * comparison.a.bytes_per_weight
    sizes = layer_matrices(read_manifest(checkpoints["half"]))
    assert sizes.elements == 4 * (64 * 64 * 2 + 32 * 64 * 2 + 64 * 96 * 3)


def test_tokens_per_second_are_of_a_generation_that_can_be_left_out(checkpoints, comparison, blocks):
    assert comparison.a.tokens_per_second > 0
    assert comparison.b.tokens_per_second > 0
    short = compare(checkpoints["dense"], checkpoints["half"], blocks[:1, :3], generated_tokens=0)
    assert short.a.tokens_per_second is None
    assert short.tokens == 2


def test_a_model_is_itself(checkpoints, blocks):
    same = compare(checkpoints["half"], checkpoints["half"], blocks, generated_tokens=0)
    assert same.divergence.mean == same.divergence.percentile_99 == 0
    assert not same.figures.divergence.any()
    assert (same.agreement, same.ratio, same.ratio_standard_error) == (1, 1, 0)


def test_small_divergences_are_not_lost_in_rounding(checkpoints, blocks, monkeypatch):
    """Logits that differ in the sixth digit: a sum of terms of both signs would be noise in float32."""
    with (
        endor.load(checkpoints["dense"], context=LENGTH) as a,
        endor.load(checkpoints["dense"], context=LENGTH) as b,
    ):
        exact = b.logits
        noise = np.random.default_rng(1).normal(0, 1e-3, (1, LENGTH, 320)).astype(np.float32)
        logits = exact(blocks[:1]) + noise
        monkeypatch.setattr(b, "logits", lambda group: logits)
        found = compare_tokens(a, b, blocks[:1]).divergence[0]
        first, second = log_softmax(a.logits(blocks[:1]))[0, :-1], log_softmax(logits)[0, :-1]
    expected = (np.exp(first) * (first - second)).sum(axis=-1)
    assert expected.max() < 3e-6
    assert (found >= 0).all()
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-11)


def test_how_many_blocks_go_at_once_changes_nothing(checkpoints, comparison, blocks):
    seen = []
    other = compare(
        *(checkpoints["dense"], checkpoints["half"], blocks),
        batch=5,
        generated_tokens=0,
        progress=lambda *each: seen.append(each),
    )
    assert seen == [(0, 5)]
    for name in ("losses_a", "losses_b", "divergence", "agrees"):
        np.testing.assert_array_equal(getattr(other.figures, name), getattr(comparison.figures, name))


def test_logits_on_the_device_are_those_of_few_positions(checkpoints, blocks, monkeypatch):
    from endor_jax.evaluate import divergence

    shapes, inner = [], divergence._figures
    monkeypatch.setattr(divergence, "_figures", lambda a, b, t: shapes.append(a.shape) or inner(a, b, t))
    with endor.load(checkpoints["half"], context=LENGTH) as model:
        compare_tokens(model, model, blocks[:2])
    assert set(shapes) == {(POSITIONS, 320), (LENGTH - POSITIONS, 320)}
    assert logits_bytes(320, length=LENGTH, at_once=2) == 2 * 2 * LENGTH * 320 * 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("larger", "vocabularies of 320 and 330 tokens, expected one vocabulary"),
        ("no tokenizer", "and no tokenizer.json, expected the same tokenizer"),
        ("other tokenizer", "expected the same tokenizer"),
    ],
)
def test_models_of_other_tokens_are_refused(checkpoints, blocks, name, message):
    with pytest.raises(InvalidInputError, match=message):
        compare(checkpoints["dense"], checkpoints[name], blocks)


def test_blocks_and_checkpoints_that_cannot_be_compared(checkpoints, tmp_path):
    dense, half = checkpoints["dense"], checkpoints["half"]
    with pytest.raises(InvalidInputError, match="blocks of a text: got none"):
        compare(dense, half, np.zeros((0, 8), np.int32))
    with pytest.raises(InvalidInputError, match="sequence_length 1"):
        compare(dense, half, np.zeros((2, 1), np.int32))
    with pytest.raises(NotFoundError, match="no such directory"):
        compare(dense, tmp_path / "nowhere", np.zeros((2, 8), np.int32))
