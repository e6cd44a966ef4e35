"""A small real checkpoint, with everything that one has: model, tokenizer, dense and packed tensors."""

from __future__ import annotations

import json
from pathlib import Path

import endor_jax as endor
from tests.tiny_models import LLAMA, write_tiny

CONFIG = LLAMA | {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 160, "vocab_size": 260}


def convert_small(directory: Path) -> Path:
    """Writes source and checkpoint below `directory`; returns the checkpoint."""
    source = write_tiny(directory / "source", CONFIG, tokenizer=True)
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    path = directory / "model.endor"
    endor.convert(source, path, dtype="bfloat16", prune="magnitude", sparsity=0.5)
    return path


def files_of(path: Path) -> list[Path]:
    """All files of a checkpoint, in order."""
    return sorted(file for file in path.rglob("*") if file.is_file())
