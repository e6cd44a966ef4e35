"""Blocks of a text in a seeded order, so that those for calibration and those to score can be kept apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from endor_jax.errors import InvalidInputError


def shuffled_blocks(
    token_ids: Sequence[int], length: int, *, seed: int, first: int = 0, count: int | None = None
) -> Int[np.ndarray, "blocks length"]:
    """Blocks first, ..., first + count − 1 of a text that was cut every `length` tokens and then shuffled.

    The same seed gives the same order (PCG64), so that ranges that do not overlap share no text. What fills
    no block is left out. count: None takes all that there are. Returns int32.
    Raises InvalidInputError if there are fewer blocks than that, or none.
    """
    whole = len(token_ids) // length
    last = whole if count is None else first + count
    if not 0 <= first < last <= whole:
        raise InvalidInputError(
            "blocks of a text",
            got=f"{len(token_ids):,} tokens: {whole:,} blocks of {length}",
            expected=f"blocks {first} to {max(last - 1, first)}",
            fix="give a longer text, or ask for fewer or shorter blocks",
        )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(whole)[first:last]
    cut = np.asarray(token_ids[: whole * length], np.int32).reshape(whole, length)
    return cut[order]
