"""Published models: every config.json is read as it is; relatives of other kinds are refused by name."""

from __future__ import annotations

import math

import pytest

from endor_jax import models
from endor_jax.errors import UnsupportedError
from endor_jax.models.rope import Llama3Scaling, Rope
from tests.models.published import PUBLISHED, REFUSED
from tests.models.published_others import NEIGHBOURS, OPT

ALL = PUBLISHED | NEIGHBOURS | OPT

THETA = {"Llama-1": 1e4, "Llama-2": 1e4, "TinyLlama": 1e4, "CodeLlama": 1e6, "Llama-3": 5e5, "SmolLM-": 1e4}
FACTOR = {"Llama-3.1": 8.0, "Llama-3.2": 32.0, "Llama-3.3": 8.0}


def read(name: str) -> models.LlamaConfig:
    config = models.from_hf(ALL[name][0])
    assert isinstance(config, models.LlamaConfig)
    return config


@pytest.mark.parametrize("name", ALL)
def test_the_published_number_of_parameters(name: str):
    config, count = ALL[name]
    parts = models.part_shapes(models.decoder(models.from_hf(config)))
    assert sum(math.prod(shape) for shapes in parts.values() for shape in shapes.values()) == count


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


@pytest.mark.parametrize(
    ("name", "window"), [(name, 4096 if name == "Mistral-7B-v0.1" else None) for name in NEIGHBOURS]
)
def test_windows_of_neighbours(name: str, window: int | None):
    assert read(name).window == window


def test_the_350m_among_the_opts():
    configs = {name: models.from_hf(config) for name, (config, _) in OPT.items()}
    for name, config in configs.items():
        assert isinstance(config, models.OptConfig)
        assert (config.projected_size, config.pre_norm, config.final_norm) == (
            (512, False, False) if name == "opt-350m" else (None, True, True)
        )
        assert config.activation == ("gelu" if name == "galactica-125m" else "relu")
        assert config.tied_head


@pytest.mark.reference
@pytest.mark.parametrize("name", ALL)
def test_read_as_transformers_reads_it(name: str):
    """What transformers makes of a published config, in its own v5 spelling, is the same config to us."""
    transformers = pytest.importorskip("transformers")
    config = ALL[name][0]
    written = transformers.AutoConfig.for_model(**config).to_dict()
    assert models.from_hf(written) == models.from_hf(config)
