"""Published Llamas: every config.json is read as it is; relatives of other kinds are refused by name."""

from __future__ import annotations

import math

import pytest

from endor_jax import models
from endor_jax.errors import UnsupportedError
from endor_jax.models.rope import Llama3Scaling, Rope
from tests.models.published import PUBLISHED, REFUSED

THETA = {"Llama-1": 1e4, "Llama-2": 1e4, "TinyLlama": 1e4, "CodeLlama": 1e6, "Llama-3": 5e5, "SmolLM-": 1e4}
FACTOR = {"Llama-3.1": 8.0, "Llama-3.2": 32.0, "Llama-3.3": 8.0}


def read(name: str) -> models.LlamaConfig:
    config = models.from_hf(PUBLISHED[name][0])
    assert isinstance(config, models.LlamaConfig)
    return config


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number_of_parameters(name: str):
    config = read(name)
    decoder = models.decoder(config)
    block, final = (sum(map(math.prod, s.values())) for s in (decoder.block_shapes, decoder.final_shapes))
    matrices = 1 if config.tied_head else 2
    total = matrices * config.vocabulary_size * config.hidden_size + config.layers * block + final
    assert total == PUBLISHED[name][1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_rotary_positions(name: str):
    theta = next((t for start, t in THETA.items() if name.startswith(start)), None)
    theta = theta or {"SmolLM2-360M": 1e5, "SmolLM2-1.7B": 1.3e5}[name]
    factor = next((f for start, f in FACTOR.items() if name.startswith(start)), None)
    scaling = None
    if factor:
        scaling = Llama3Scaling(
            factor=factor, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=8192
        )
    assert read(name).rope == Rope(theta=theta, scaling=scaling)


@pytest.mark.parametrize("name", REFUSED)
def test_relatives_are_refused_by_name(name: str):
    config, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        models.from_hf(config)


@pytest.mark.reference
@pytest.mark.parametrize("name", PUBLISHED)
def test_read_as_transformers_reads_it(name: str):
    """What transformers makes of a published config, in its own v5 spelling, is the same config to us."""
    transformers = pytest.importorskip("transformers")
    assert models.from_hf(transformers.LlamaConfig(**PUBLISHED[name][0]).to_dict()) == read(name)
