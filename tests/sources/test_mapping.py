"""Key tables: names there and back, agreement with the modules and with transformers, complete or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from endor_jax import models
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.sources import (
    Place,
    TensorInfo,
    check_complete,
    locate,
    open_source,
    to_endor,
    to_hf,
    write_safetensors,
)
from endor_jax.sources.families import FAMILIES
from endor_jax.sources.mapping import expected_places

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 11,
    "hidden_size": 8,
    "ffn_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "word_embed_proj_dim": 8,
}
OPT_350M = OPT | {"word_embed_proj_dim": 6, "do_layer_norm_before": False}
CONFIGS = {
    "llama": LLAMA,
    "llama tied": LLAMA | {"tie_word_embeddings": True},
    "llama with biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama with attention biases": LLAMA | {"attention_bias": True},
    "mistral": LLAMA | {"model_type": "mistral"},
    "qwen2": LLAMA | {"model_type": "qwen2"},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 6},
    "qwen3 with biases": LLAMA | {"model_type": "qwen3", "head_dim": 6, "attention_bias": True},
    "opt": OPT,
    "opt 350m": OPT_350M,
    "opt 350m untied": OPT_350M | {"tie_word_embeddings": False},
    "opt without final norm": OPT | {"_remove_final_layer_norm": True},
    "opt without biases": OPT | {"enable_bias": False},
    "opt without parameters of norms": OPT | {"layer_norm_elementwise_affine": False},
    "opt untied": OPT | {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_there_and_back(config: Mapping[str, Any]) -> None:
    family = config["model_type"]
    places = expected_places(family, config)
    assert len(set(places)) == len(places)
    names = [to_hf(family, place) for place in places]
    assert [to_endor(family, name) for name in names] == places
    for shortened in ("model.", "model.decoder."):
        assert [to_endor(family, name.removeprefix(shortened)) for name in names] == places


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_places_are_the_parameters_of_the_modules(config: Mapping[str, Any]) -> None:
    decoder = models.decoder(models.from_hf(config))
    expected = {part: set(shapes) for part, shapes in models.part_shapes(decoder).items()}
    got: dict[str, set[str]] = {}
    for place in expected_places(config["model_type"], config):
        got.setdefault(place.record, set()).add(place.tensor)
    assert got == expected


@pytest.mark.reference
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_names_and_shapes_are_those_of_transformers(config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    parameters = dict(model.named_parameters())  # a tied head is listed once
    family = config["model_type"]
    assert sorted(to_hf(family, place) for place in expected_places(family, config)) == sorted(parameters)
    shapes = models.part_shapes(models.decoder(models.from_hf(config)))
    for name, parameter in parameters.items():
        place = to_endor(family, name)
        assert place is not None
        assert tuple(parameter.shape) == shapes[place.record][place.tensor], name


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.q_proj.weights"),
        ("llama", "model.layers.00.self_attn.q_proj.weight"),
        ("llama", "model.layers.-1.self_attn.q_proj.weight"),
        ("llama", "model.model.norm.weight"),
        ("llama", "model.lm_head.weight"),
        ("llama", "model.layers.0.input_layernorm.bias"),
        ("llama", "model.decoder.embed_tokens.weight"),
        ("opt", "model.embed_tokens.weight"),
        ("opt", "model.decoder.project_in.bias"),
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias"),
        ("mistral", "model.layers.0.self_attn.q_proj.bias"),
        ("qwen3", "model.layers.0.mlp.up_proj.bias"),
    ],
)
def test_names_that_no_row_matches(family: str, name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"tensor '{name}'"):
        to_endor(family, name)


def test_ignorable_names() -> None:
    for name in ("model.rotary_emb.inv_freq", "rotary_emb.inv_freq"):
        assert to_endor("llama", name) is None
    assert to_endor("llama", "model.layers.11.self_attn.rotary_emb.inv_freq") is None
    assert all(reason for family in FAMILIES.values() for reason in family.ignorable.values())


def test_unknown_family_and_place() -> None:
    with pytest.raises(UnsupportedError, match="'mamba'"):
        to_endor("mamba", "x")
    with pytest.raises(InvalidInputError, match="attention_norm"):
        to_hf("llama", Place("layers.0", "attention_norm.bias"))
    with pytest.raises(InvalidInputError, match="layers"):
        to_hf("llama", Place("layers.01", "attention_norm.scale"))


def test_every_family_of_the_models_has_a_table() -> None:
    with pytest.raises(UnsupportedError, match=f"one of {', '.join(FAMILIES)}"):
        models.from_hf({"model_type": "phi3"})
    for family in FAMILIES:
        assert models.from_hf({"model_type": family})


@pytest.mark.parametrize(
    ("config", "surplus"),
    [
        (OPT | {"enable_bias": False}, Place("layers.0", "mlp.up.bias")),
        (OPT | {"do_layer_norm_before": False}, Place("final", "norm.scale")),
        (OPT | {"layer_norm_elementwise_affine": False}, Place("layers.1", "mlp_norm.scale")),
        (OPT, Place("stem", "project_in.weight")),
        (OPT_350M, Place("final", "norm.bias")),
    ],
)
def test_tensors_that_the_variant_of_an_opt_has_not_are_named(config: dict[str, Any], surplus: Place) -> None:
    name = to_hf("opt", surplus).replace(".", r"\.")
    with pytest.raises(InvalidInputError, match=f"tensor {name}, which its config has no use for"):
        check_complete("opt", config, [*expected_places("opt", config), surplus])


def test_missing_and_surplus_tensors_are_named() -> None:
    places = expected_places("llama", LLAMA)
    check_complete("llama", LLAMA, places)
    short = [place for place in places if place.tensor != "mlp.up.weight"]
    with pytest.raises(
        InvalidInputError, match=r"layers\.0\.mlp\.up_proj.weight, model\.layers\.1\.mlp\.up_proj"
    ):
        check_complete("llama", LLAMA, short)
    with pytest.raises(InvalidInputError, match=r"tensor model\.layers\.2\.input_layernorm.*no use"):
        check_complete("llama", LLAMA, [*places, Place("layers.2", "attention_norm.scale")])


def write(directory: Path, config: Mapping[str, Any], names: Mapping[str, np.ndarray]) -> None:
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in names.items()}
    files = {"config.json": json.dumps(dict(config)).encode()}
    write_safetensors(directory, names.items(), infos=infos, files=files)


def all_names(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    family = config["model_type"]
    return {to_hf(family, place): np.ones(2, np.float32) for place in expected_places(family, config)}


def test_locate_gives_every_place_in_order(tmp_path: Path) -> None:
    names = all_names(LLAMA) | {"model.rotary_emb.inv_freq": np.ones(2, np.float32)}
    write(tmp_path, LLAMA, dict(reversed(names.items())))
    with open_source(tmp_path) as source:
        found = locate(source)
    assert list(found) == expected_places("llama", LLAMA)
    assert found[Place("layers.1", "attention.query.weight")] == "model.layers.1.self_attn.q_proj.weight"


def test_the_same_tensor_with_and_without_prefix(tmp_path: Path) -> None:
    write(tmp_path, LLAMA, all_names(LLAMA) | {"norm.weight": np.ones(2, np.float32)})
    with pytest.raises(InvalidInputError, match=r"'norm\.weight'.*the same tensor as"):
        locate(open_source(tmp_path))


def test_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    config = CONFIGS["llama tied"]
    head = {"lm_head.weight": np.ones(2, np.float32)}
    write(tmp_path / "equal", config, all_names(config) | head)
    assert Place("head", "weight") not in locate(open_source(tmp_path / "equal"))
    # -0.0 == 0.0, but not bit by bit.
    zeros = {"model.embed_tokens.weight": np.zeros(2, np.float32), "lm_head.weight": -np.zeros(2, np.float32)}
    for name, other in {"bits": zeros, "shape": {"lm_head.weight": np.ones(3, np.float32)}}.items():
        write(tmp_path / name, config, all_names(config) | other)
        with pytest.raises(InvalidInputError, match=r"lm_head\.weight.*tie_word_embeddings"):
            locate(open_source(tmp_path / name))


def test_of_a_tied_pair_either_may_be_there(tmp_path: Path) -> None:
    config = CONFIGS["llama tied"]
    names = all_names(config)
    names["lm_head.weight"] = names.pop("model.embed_tokens.weight")
    write(tmp_path, config, names)
    found = locate(open_source(tmp_path))
    assert found[Place("embedding", "weight")] == "lm_head.weight"
    assert Place("head", "weight") not in found


@pytest.mark.parametrize("layers", [10**12, 0, -1, True, 2.0, None, "2"])
def test_number_of_layers_that_cannot_be(tmp_path: Path, layers: Any) -> None:
    config = LLAMA | {"num_hidden_layers": layers}
    write(tmp_path, config, all_names(LLAMA))
    with pytest.raises(InvalidInputError, match="num_hidden_layers"):
        locate(open_source(tmp_path))


def test_source_without_a_known_family(tmp_path: Path) -> None:
    write(tmp_path, {}, {"w": np.ones(2, np.float32)})
    with pytest.raises(UnsupportedError, match="model_type"):
        locate(open_source(tmp_path))
