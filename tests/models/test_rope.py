"""RoPE: turns against float64 complex numbers, frequencies against their definition and transformers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax.models.rope import LinearScaling, Llama3Scaling, Rope, frequencies, rotate

LLAMA_3_1 = Llama3Scaling(
    factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=8192
)
SMALL = Llama3Scaling(
    factor=32.0, low_frequency_factor=0.5, high_frequency_factor=3.0, original_max_positions=100
)
SCALINGS = {"none": None, "linear": LinearScaling(2.5), "llama3": LLAMA_3_1, "llama3-small": SMALL}


def frequencies_float64(rope: Rope, head_dim: int) -> np.ndarray:
    """The definition, pair by pair."""
    result = []
    for i in range(head_dim // 2):
        f = rope.theta ** (-2 * i / head_dim)
        match rope.scaling:
            case LinearScaling(factor):
                f /= factor
            case Llama3Scaling(factor=factor, low_frequency_factor=low, high_frequency_factor=high):
                turns = rope.scaling.original_max_positions * f / (2 * np.pi)
                share = min(max((turns - low) / (high - low), 0), 1)
                f = (1 - share) * f / factor + share * f
        result.append(f)
    return np.array(result)


def rotate_float64(x: np.ndarray, positions: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Pairs (i, i + half) as complex numbers, turned by position * frequency."""
    half = x.shape[-1] // 2
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half:]
    pairs = pairs * np.exp(1j * positions[..., None] * turns)[:, :, None, :]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("head_dim", [2, 6, 64, 128])
def test_frequencies(head_dim: int, theta: float, scaling: str):
    rope = Rope(theta=theta, scaling=SCALINGS[scaling])
    found = frequencies(rope, head_dim)
    assert (found.dtype, found.shape) == (np.float32, (head_dim // 2,))
    np.testing.assert_allclose(found, frequencies_float64(rope, head_dim), rtol=1e-6)


def test_llama3_scaling_has_three_regions():
    plain, scaled = (frequencies(Rope(theta=5e5, scaling=s), 128) for s in (None, LLAMA_3_1))
    ratio = plain / scaled
    assert (np.diff(ratio) >= -1e-6).all()
    assert (ratio == 1).sum() > 20
    assert (ratio == 8).sum() > 20
    assert ((ratio > 1) & (ratio < 8)).sum() > 3


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("head_dim", [2, 6, 64])
def test_rotate(head_dim: int, scaling: str):
    rope = Rope(theta=1e4, scaling=SCALINGS[scaling])
    positions = np.array([[0, 1, 2, 37, 1000], [0, 999, 5, 6, 7]])
    x = np.random.default_rng(0).normal(size=(2, 5, 3, head_dim)).astype(np.float32)
    turned = rotate(jnp.asarray(x), jnp.asarray(positions, jnp.int32), rope=rope)
    # A float32 angle near 1000 is off by up to 6e-5.
    exact = rotate_float64(x, positions, frequencies_float64(rope, head_dim))
    np.testing.assert_allclose(turned, exact, atol=4e-4)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_rotate_bfloat16_turns_in_float32():
    rope, positions = Rope(theta=1e4), np.array([[4001]])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 1, 64)), jnp.bfloat16)
    turned = rotate(x, jnp.asarray(positions, jnp.int32), rope=rope)
    assert turned.dtype == jnp.bfloat16
    exact = rotate_float64(np.asarray(x, np.float64), positions, frequencies_float64(rope, 64))
    np.testing.assert_allclose(np.asarray(turned, np.float64), exact, rtol=2**-8, atol=4e-3)


def transformers_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """What transformers' Llama turns with, for the same positions."""
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    match rope.scaling:
        case None:
            parameters = {"rope_type": "default"}
        case LinearScaling(factor):
            parameters = {"rope_type": "linear", "factor": factor}
        case Llama3Scaling():
            parameters = {
                "rope_type": "llama3",
                "factor": rope.scaling.factor,
                "low_freq_factor": rope.scaling.low_frequency_factor,
                "high_freq_factor": rope.scaling.high_frequency_factor,
                "original_max_position_embeddings": rope.scaling.original_max_positions,
            }
    config = modeling.LlamaConfig(
        head_dim=head_dim,
        max_position_embeddings=131_072,
        rope_parameters={**parameters, "rope_theta": rope.theta},
    )
    return modeling.LlamaRotaryEmbedding(config).inv_freq.numpy()


@pytest.mark.reference
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("theta", [1e4, 1e5, 1.3e5, 5e5])
def test_published_frequencies_are_bitwise_those_of_transformers(theta: float, scaling: str):
    for head_dim in (64, 128):
        rope = Rope(theta=theta, scaling=SCALINGS[scaling])
        np.testing.assert_array_equal(frequencies(rope, head_dim), transformers_frequencies(rope, head_dim))


@pytest.mark.reference
@pytest.mark.parametrize("scaling", SCALINGS)
def test_any_frequencies_are_near_those_of_transformers(scaling: str):
    """torch's float32 power is not the same on every processor: nobody can equal it bit by bit everywhere."""
    for head_dim in (2, 10, 48, 80, 96, 112, 160, 256):
        for theta in (1e4, 123_456.7, 1e6, 8e6):
            rope = Rope(theta=theta, scaling=SCALINGS[scaling])
            np.testing.assert_allclose(
                frequencies(rope, head_dim), transformers_frequencies(rope, head_dim), rtol=1e-6
            )
