"""Export writes every bit back, and exporting what was imported again gives the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.arrays import bits_of
from endor_jax.errors import DestinationExistsError, InvalidInputError
from endor_jax.sources import open_source
from tests.tiny_models import LLAMA, MISTRAL, OPT, OPT_350M, QWEN2, QWEN3, random_tensors, write_tiny

UNTIED = LLAMA | {"tie_word_embeddings": False}
EVERY = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "opt": OPT,
    "opt-350m": OPT_350M,
    "opt-bare": OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False},
}


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("config", [LLAMA, UNTIED, OPT], ids=["llama", "untied", "opt"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_tensor_comes_back(tmp_path, config, dtype):
    endor.convert(write_tiny(tmp_path / "source", config, dtype=dtype), tmp_path / "checkpoint")
    assert endor.export(tmp_path / "checkpoint", tmp_path / "out") == tmp_path / "out"
    with open_source(tmp_path / "out") as source:
        expected = random_tensors(config, dtype=dtype)
        assert set(source.tensors) == set(expected)
        for name, array in expected.items():
            got = source.read(name)
            assert got.dtype == array.dtype
            np.testing.assert_array_equal(bits_of(got), bits_of(array))


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_exporting_again_gives_the_same_bytes(tmp_path, config):
    source = write_tiny(tmp_path / "source", config, tokenizer=True)
    endor.convert(source, tmp_path / "first", dtype="bfloat16", prune="magnitude", sparsity=0.5)
    endor.export(tmp_path / "first", tmp_path / "out1")
    endor.convert(tmp_path / "out1", tmp_path / "second")
    endor.export(tmp_path / "second", tmp_path / "out2")
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert set(contents(tmp_path / "out1")) == {"config.json", "model.safetensors", "tokenizer.json"}


def test_progress_and_what_is_refused(tmp_path):
    endor.convert(write_tiny(tmp_path / "source"), tmp_path / "checkpoint")
    calls = []
    endor.export(tmp_path / "checkpoint", tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2] > 0
    with pytest.raises(DestinationExistsError):
        endor.export(tmp_path / "checkpoint", tmp_path / "out")
    endor.save(tmp_path / "trees", [{"w": np.ones((64, 64), np.float32)}])
    with pytest.raises(InvalidInputError, match="parameter trees without a model"):
        endor.export(tmp_path / "trees", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
