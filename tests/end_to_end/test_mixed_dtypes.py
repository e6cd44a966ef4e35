"""Checkpoints whose tensors differ in dtype: each keeps its own, x has the embedding's from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.arrays import dtype_from_name
from endor_jax.sources.safetensors_writer import write_safetensors
from endor_jax.sources.source import TensorInfo
from endor_jax.store.manifest import read_manifest
from tests.tiny_models import LLAMA, random_tensors

CONFIG = {**LLAMA, "tie_word_embeddings": False, "attention_bias": True}
IDS = [list(range(3, 40))]


def kind(name: str) -> str:
    return "embedding" if "embed_tokens" in name else "norm" if "norm" in name else "other"


def write_mixed(directory: Path, dtypes: dict[str, str]) -> Path:
    """The same weights whatever the dtypes are: all of them are bfloat16 numbers."""
    tensors = {
        name: array.astype(dtype_from_name(dtypes[kind(name)]))
        for name, array in random_tensors(CONFIG, dtype="bfloat16").items()
    }
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    files = {"config.json": json.dumps(CONFIG).encode()}
    write_safetensors(directory, tensors.items(), infos=infos, files=files)
    return directory


def logits(directory: Path, dtypes: dict[str, str]) -> np.ndarray:
    write_mixed(directory / "source", dtypes)
    endor.convert(directory / "source", directory / "dst")
    manifest = read_manifest(directory / "dst")
    stored = {t.dtype for record in manifest.records for _, t in manifest.layout(record).tensors}
    assert stored == set(dtypes.values())
    with endor.load(directory / "dst", device_memory=2**30, host_memory=2**30) as model:
        return model.logits(IDS)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return logits(tmp_path_factory.mktemp("wide"), dict.fromkeys(("embedding", "norm", "other"), "float32"))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return logits(
        tmp_path_factory.mktemp("narrow"), dict.fromkeys(("embedding", "norm", "other"), "bfloat16")
    )


def test_a_float32_embedding_computes_in_float32(tmp_path: Path, wide: np.ndarray):
    found = logits(tmp_path, {"embedding": "float32", "norm": "float32", "other": "bfloat16"})
    np.testing.assert_array_equal(found, wide)


@pytest.mark.parametrize(
    "dtypes",
    [
        {"embedding": "bfloat16", "norm": "float32", "other": "bfloat16"},
        {"embedding": "bfloat16", "norm": "float32", "other": "float32"},
    ],
    ids=lambda dtypes: ",".join(dtypes.values()),
)
def test_a_bfloat16_embedding_computes_in_bfloat16(
    tmp_path: Path, wide: np.ndarray, narrow: np.ndarray, dtypes: dict[str, str]
):
    found = logits(tmp_path, dtypes)
    # The numbers of the weights are the same: only the dtype of x decides what is rounded.
    np.testing.assert_array_equal(found, narrow)
    assert not np.array_equal(found, wide)
    assert np.abs(found - wide).max() < 0.1 * np.abs(wide).max()
