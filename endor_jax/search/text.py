"""The text of a search, in three parts that share nothing: to calibrate, to search with, to check with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from endor_jax.conversion.calibration_text import calibration_blocks, described
from endor_jax.conversion.estimate import parsed_config
from endor_jax.conversion.settings import CalibrationText
from endor_jax.errors import InvalidInputError
from endor_jax.evaluate.perplexity import check_blocks
from endor_jax.sources.source import Source


@dataclass(frozen=True)
class SearchText:
    """Blocks to search with, then as many others to check with. described: which text, and its digest."""

    blocks: Int[np.ndarray, "blocks length"]
    described: dict[str, Any]

    @property
    def search(self) -> Int[np.ndarray, "half length"]:
        """What the tries are scored on."""
        return self.blocks[: len(self.blocks) // 2]

    @property
    def check(self) -> Int[np.ndarray, "half length"]:
        """What only the chosen try is scored on."""
        return self.blocks[len(self.blocks) // 2 :]


def search_text(source: Source, text: CalibrationText, scored_blocks: int) -> SearchText:
    """Of the text's shuffled blocks those behind the ones for calibration: `scored_blocks` to search with, as
    many to check with.

    A method that does not calibrate leaves the first ones out as well, so that all methods are scored on the
    same text. Raises InvalidInputError for a source without tokenizer, a text of too few blocks, and what
    else `calibration_blocks` refuses; NotFoundError for a text that is not there.
    """
    if "tokenizer.json" not in source.files():
        raise InvalidInputError(
            f"searching with {source.path}",
            got="no tokenizer.json",
            expected="one beside the weights: tries are scored on a text",
            fix="fetch it too or write it with AutoTokenizer.save_pretrained, or give the sparsity",
        )
    all_of_it = replace(text, blocks=text.blocks + 2 * scored_blocks)
    try:
        blocks = calibration_blocks(source, parsed_config(source.config), all_of_it)
    except InvalidInputError as error:
        parts = f"{text.blocks} to calibrate, {scored_blocks} to search with, {scored_blocks} to check with"
        raise InvalidInputError(
            f"text of the search ({parts}): {error.where}",
            got=error.got,
            expected=error.expected,
            fix=error.fix,
        ) from error
    check_blocks(blocks)
    return SearchText(blocks[text.blocks :], described(all_of_it, blocks))
