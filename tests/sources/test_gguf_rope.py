"""Rope divisors that llama.cpp stores: recognised as Llama 3's scaling, or refused by name."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest

from endor_jax import models
from endor_jax.errors import UnsupportedError
from endor_jax.models.rope import Rope, frequencies
from endor_jax.sources.gguf_rope import llama3_scaling
from endor_jax.sources.opening import open_source
from tests.sources.tiny_gguf import HEAD_DIM, hf_tensors, write_gguf


def converted(theta: float, head_dim: int, *, factor: float, low=1.0, high=4.0, context=8192) -> np.ndarray:
    """What llama.cpp's converter would write, pair by pair and by its own rules."""
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi / float(np.float32(1 / theta ** (i / head_dim)))
        if wavelength < context / high:
            divisors.append(1.0)
        elif wavelength > context / low:
            divisors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize(("head_dim", "factor"), [(128, 8.0), (64, 32.0)])
def test_divisors_of_published_models_are_recognised(head_dim: int, factor: float) -> None:
    divisors = converted(5e5, head_dim, factor=factor)
    scaling = llama3_scaling(divisors, theta=5e5, where="here")
    config = models.from_hf({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": scaling})
    assert isinstance(config, models.LlamaConfig)
    assert scaling is not None
    assert scaling["factor"] == factor
    # What transformers multiplies positions with is what llama.cpp divides by the stored divisors.
    plain = frequencies(Rope(theta=5e5), head_dim)
    np.testing.assert_allclose(frequencies(config.rope, head_dim), plain / divisors, rtol=1e-5)


@pytest.mark.parametrize("other", [{"low": 2.0}, {"high": 8.0}, {"context": 4096}])
def test_other_divisors_are_refused(other: dict) -> None:
    with pytest.raises(UnsupportedError, match=r"here.*another kind.*those of Llama 3 \(1 and 4 of 8192"):
        llama3_scaling(converted(5e5, 128, factor=8.0, **other), theta=5e5, where="here")


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.0, -1.0])
def test_divisors_that_cannot_be_are_refused(wrong: float) -> None:
    for divisors in (np.full(32, wrong, np.float32), np.array([1.0, 2.0, wrong], np.float32)):
        with pytest.raises(UnsupportedError, match="another kind"):
            llama3_scaling(divisors, theta=1e4, where="here")


def add_divisors(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", converted(50_000.0, HEAD_DIM, factor=8.0))


def test_a_file_with_divisors_has_llama3_scaling(tmp_path: Path) -> None:
    source = open_source(write_gguf(tmp_path / "a.gguf", hf_tensors(), add_divisors))
    assert source.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert source.tensors.keys() == hf_tensors().keys()


def test_divisors_beside_linear_scaling_are_refused(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "a.gguf", hf_tensors(), add_divisors, lambda w: w.add_rope_scaling_factor(2.0)
    )
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight.*beside linear scaling"):
        open_source(path)
