"""The token blocks that a model is calibrated with."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from endor_jax.conversion.settings import CalibrationText
from endor_jax.errors import InvalidInputError
from endor_jax.models import LlamaConfig, OptConfig
from endor_jax.sources.source import Source
from endor_jax.store.digest import digest_bytes
from endor_jax.text import tokenizer_of
from endor_jax.text.blocks import shuffled_blocks
from endor_jax.text.corpus import read_corpus

LENGTH = 512
"""Tokens of a block, of models that have so many positions."""


def calibration_blocks(
    source: Source, config: LlamaConfig | OptConfig, text: CalibrationText
) -> Int[np.ndarray, "blocks length"]:
    """The blocks of a text, by the source's own tokenizer.

    Raises InvalidInputError for a source without tokenizer, a model with fewer positions than a block is
    long, a tokenizer with ids that the model has no embedding for, or a text of too few blocks;
    NotFoundError for a text that is not there.
    """
    files = source.files()
    if "tokenizer.json" not in files:
        raise InvalidInputError(
            f"calibrating {source.path}",
            got="no tokenizer.json",
            expected="one beside the weights: pruning looks at what the model does with a text",
            fix="fetch it too or write it with AutoTokenizer.save_pretrained, or prune by magnitude",
        )
    length = min(LENGTH, config.max_positions) if text.length is None else text.length
    if length > config.max_positions:
        raise InvalidInputError(
            f"calibrating {source.path}",
            got=f"blocks of {length} tokens",
            expected=f"at most the model's {config.max_positions} positions",
            fix="make the blocks shorter",
        )
    ids = tokenizer_of(files, source.path).encode(read_corpus(text.path))
    blocks = shuffled_blocks(ids, length, seed=text.seed, count=text.blocks)
    if int(blocks.max()) >= config.vocabulary_size:
        raise InvalidInputError(
            f"tokenizer of {source.path}",
            got=f"token id {int(blocks.max())}",
            expected=f"ids below {config.vocabulary_size}, the rows of the embedding",
            fix="check that tokenizer.json belongs to these weights",
        )
    return blocks


def described(text: CalibrationText, blocks: Int[np.ndarray, "blocks length"]) -> dict[str, Any]:
    """What the manifest and the journal keep of it: enough to tell another text, and to leave it out when
    the result is scored."""
    return {
        "text": text.path or "pydoc_data.topics",
        "blocks": blocks.shape[0],
        "length": blocks.shape[1],
        "seed": text.seed,
        "digest": digest_bytes(np.ascontiguousarray(blocks).view(np.uint8).reshape(-1)),
    }
