"""Tokenizers of both kinds, loaded from directories as users have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from endor_jax.sources.gguf_tokenizer import tokenizer_files
from endor_jax.text import Tokenizer, load_tokenizer
from tests.text.tiny_vocabularies import GPT2_METADATA, SPM_METADATA


def write(directory: Path, metadata: Mapping[str, Any]) -> Path:
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    for name, data in tokenizer_files(named, where="test").items():
        (directory / name).write_bytes(data)
    return directory


@pytest.fixture
def spm_directory(tmp_path: Path) -> Path:
    return write(tmp_path, SPM_METADATA)


@pytest.fixture(scope="session", params=["sentencepiece", "byte-level"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    metadata = {"sentencepiece": SPM_METADATA, "byte-level": GPT2_METADATA}[request.param]
    return load_tokenizer(write(tmp_path_factory.mktemp("tokenizer"), metadata))


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write(tmp_path_factory.mktemp("tokenizer"), SPM_METADATA))
