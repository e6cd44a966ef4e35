"""Workloads: their shapes, the same bytes every time, little memory to make them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from endor_jax import models
from endor_jax.bench.workloads import WORKLOADS, workload, write_workload
from endor_jax.errors import DestinationExistsError, OptionError
from endor_jax.sources import open_source


def parameters(config: dict) -> int:
    """Weights of a Llama with separate head."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    keys = hidden // heads * config["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * config["intermediate_size"] + 2 * hidden
    return config["num_hidden_layers"] * layer + 2 * config["vocab_size"] * hidden + hidden


def test_the_shapes_are_those_of_their_names():
    assert parameters(dict(workload("llama-1b").config)) == 1_100_048_384
    assert 10e6 < parameters(dict(workload("llama-10m").config)) < 11e6
    limits = {"convert": 1_717_986_918, "calibrate": 3_221_225_472, "generate": 1_288_490_188}
    assert workload("llama-1b").limit_bytes == limits
    for made in WORKLOADS.values():
        assert models.from_hf(made.config)


def test_what_is_written_is_a_sharded_model_of_that_shape(tmp_path: Path):
    source = write_workload(tmp_path / "model", "llama-10m")
    assert len(list(source.glob("*.safetensors"))) > 3
    with open_source(source) as opened:
        assert sum(info.nbytes for info in opened.tensors.values()) == 2 * parameters(opened.config)
        assert {info.dtype for info in opened.tensors.values()} == {"bfloat16"}
        assert "tokenizer.json" in opened.files()
        weight = opened.read("model.layers.3.mlp.down_proj.weight").astype(np.float32)
        assert weight.std() == pytest.approx(weight.shape[1] ** -0.5, rel=0.02)
        assert abs(weight.mean()) < 1e-3


def test_the_same_name_gives_the_same_bytes_and_is_made_once(tmp_path: Path):
    first, second = (write_workload(tmp_path / name, "llama-10m") for name in ("a", "b"))
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {
        p.name: p.read_bytes() for p in second.iterdir()
    }
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    write_workload(first, "llama-10m")
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    with pytest.raises(DestinationExistsError):
        write_workload(first, "llama-10m", seed=1)


def test_layers_of_large_models_have_their_sizes():
    llama = dict(workload("llama-70b-layers", 3).config)
    assert llama["num_hidden_layers"] == 3
    assert parameters(llama) - parameters(llama | {"num_hidden_layers": 2}) == 855_654_400  # of Llama-2-70B
    opt = workload("opt-66b-layers", 64).config
    shapes = models.part_shapes(models.decoder(models.from_hf(opt)))["layers.0"]
    # Of OPT-66B, whose 64 layers make 65.2 billion.
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_019_335_680


def test_another_number_of_layers_has_no_promised_memory_and_at_least_one():
    assert workload("llama-1b", 2).limit_bytes == {}
    with pytest.raises(OptionError, match="layers: got 0, expected at least 1"):
        workload("llama-1b", 0)


def test_an_opt_has_matrices_scales_and_biases(tmp_path: Path):
    source = write_workload(tmp_path / "model", "opt-10m", layers=2)
    with open_source(source) as opened:
        assert opened.config["num_hidden_layers"] == 2
        assert not any("layers.2." in name for name in opened.tensors)
        layer = "model.decoder.layers.1"
        scale = opened.read(f"{layer}.final_layer_norm.weight").astype(np.float32)
        bias = opened.read(f"{layer}.final_layer_norm.bias").astype(np.float32)
        matrix = opened.read(f"{layer}.fc2.weight").astype(np.float32)
    assert scale.mean() == pytest.approx(1, abs=0.05)
    assert bias.mean() == pytest.approx(0, abs=0.05)
    assert matrix.std() == pytest.approx(1024**-0.5, rel=0.02)


def test_unknown_names_are_refused(tmp_path: Path):
    with pytest.raises(OptionError, match=r"model: got 'llama-9t', expected llama-1b, llama-10m"):
        write_workload(tmp_path, "llama-9t")


def test_a_directory_that_was_not_finished_is_no_workload(tmp_path: Path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({}))
    with pytest.raises(DestinationExistsError):
        write_workload(tmp_path / "m", "llama-10m")
