"""Tiny converted models, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import endor_jax as endor
from tests.tiny_models import LLAMA, OPT, write_tiny

# More layers than are in flight at depth 4: a budget must leave something to stream.
CONFIGS = {
    "llama": LLAMA | {"num_hidden_layers": 9},
    "untied": LLAMA | {"tie_word_embeddings": False, "num_hidden_layers": 8, "vocab_size": 700},
    "opt": OPT | {"num_hidden_layers": 8},
}


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints in bfloat16, half of the layers' weights zero, with a tokenizer of bytes."""
    made = {}
    for name, config in CONFIGS.items():
        base = tmp_path_factory.mktemp(name)
        source = write_tiny(base / "source", config, tokenizer=True)
        endor.convert(source, base / "dst", dtype="bfloat16", prune="magnitude", sparsity=0.5)
        made[name] = base / "dst"
    return made


@pytest.fixture
def llama(tiny_checkpoints: dict[str, Path]) -> Path:
    return tiny_checkpoints["llama"]


@pytest.fixture(params=CONFIGS, ids=str)
def checkpoint(request: pytest.FixtureRequest, tiny_checkpoints: dict[str, Path]) -> Path:
    """Each of them in turn."""
    return tiny_checkpoints[request.param]
