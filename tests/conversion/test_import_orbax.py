"""A model as Flax programs keep it, kernels transposed and heads apart, imported by its key map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

import endor_jax as endor
from endor_jax.arrays import bits_of
from tests.tiny_models import LLAMA, random_tensors, write_tiny

CONFIG = LLAMA | {"num_hidden_layers": 2}
HIDDEN, HEAD = 64, 16


def heads_in(weight: np.ndarray) -> np.ndarray:
    """(heads · size, hidden) -> (hidden, heads, size), as `nn.DenseGeneral` has it."""
    return weight.reshape(-1, HEAD, HIDDEN).transpose(2, 0, 1)


def heads_out(weight: np.ndarray) -> np.ndarray:
    """(hidden, heads · size) -> (heads, size, hidden)."""
    return weight.reshape(HIDDEN, -1, HEAD).transpose(1, 2, 0)


def test_a_flax_checkpoint_becomes_the_same_model(tmp_path: Path) -> None:
    hf = random_tensors(CONFIG)
    layers: dict[str, Any] = {}
    for i in range(2):
        prefix = f"model.layers.{i}"
        attention = {n: {"kernel": heads_in(hf[f"{prefix}.self_attn.{n}_proj.weight"])} for n in "qkv"}
        attention["o"] = {"kernel": heads_out(hf[f"{prefix}.self_attn.o_proj.weight"])}
        mlp = {n: {"kernel": hf[f"{prefix}.mlp.{n}_proj.weight"].T.copy()} for n in ("gate", "up", "down")}
        norms = {n: {"scale": hf[f"{prefix}.{n}_layernorm.weight"]} for n in ("input", "post_attention")}
        layers[f"block_{i}"] = {"attention": attention, "mlp": mlp, **norms}
    tree = {
        "params": {
            "embed": {"embedding": hf["model.embed_tokens.weight"]},
            "norm": hf["model.norm.weight"],
            **layers,
        },
        "opt_state": {"mu": np.zeros((3, 3), np.float32)},
    }
    ocp.PyTreeCheckpointer().save(tmp_path / "flax", tree)

    at, ours = "params.block_{i}", "model.layers.{i}"
    tensors: dict[str, Any] = {"model.embed_tokens.weight": "params.embed.embedding"}
    tensors["model.norm.weight"] = "params.norm"
    for n, heads in (("q", 4), ("k", 2), ("v", 2)):
        entry = {"key": f"{at}.attention.{n}.kernel", "transpose": [1, 2, 0], "shape": [heads * HEAD, HIDDEN]}
        tensors[f"{ours}.self_attn.{n}_proj.weight"] = entry
    entry = {"key": f"{at}.attention.o.kernel", "transpose": [2, 0, 1], "shape": [HIDDEN, HIDDEN]}
    tensors[f"{ours}.self_attn.o_proj.weight"] = entry
    for n in ("gate", "up", "down"):
        tensors[f"{ours}.mlp.{n}_proj.weight"] = {"key": f"{at}.mlp.{n}.kernel", "transpose": True}
    for n in ("input", "post_attention"):
        tensors[f"{ours}.{n}_layernorm.weight"] = f"{at}.{n}.scale"
    key_map = {"checkpoint": "flax", "tensors": tensors, "ignore": ["opt_state.*"], "config": CONFIG}
    (tmp_path / "map.json").write_text(json.dumps(key_map))

    endor.convert(tmp_path / "map.json", tmp_path / "imported")
    endor.convert(write_tiny(tmp_path / "source", CONFIG), tmp_path / "expected")
    with endor.open(tmp_path / "imported") as got, endor.open(tmp_path / "expected") as expected:
        assert got.manifest.model == CONFIG
        for record in expected.manifest.records:
            words, wanted = got.read_record(got.manifest.record(record.name)), expected.read_record(record)
            assert words.layout == wanted.layout
            for one, other in zip(words.words, wanted.words, strict=True):
                np.testing.assert_array_equal(bits_of(np.asarray(one)), bits_of(np.asarray(other)))
