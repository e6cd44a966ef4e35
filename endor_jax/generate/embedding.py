"""The token embedding on the host: compressed, and decoded row by row as tokens need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from endor_jax.arrays import dtype_from_name
from endor_jax.errors import InvalidInputError
from endor_jax.format.decode import decode_rows
from endor_jax.format.layout import FieldLayout


@dataclass(frozen=True)
class Embedding:
    """A (vocabulary, hidden) matrix in host memory, in parts of equal row counts."""

    parts: tuple[np.ndarray, ...]
    layout: FieldLayout

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.layout.shape[0]


def rows(embedding: Embedding, ids: Sequence[int]) -> np.ndarray:
    """Embedding rows of token ids: (len(ids), hidden) in the stored dtype.

    Raises InvalidInputError for an id outside the vocabulary.
    """
    wanted = np.asarray(ids, np.int64)
    bad = wanted[(wanted < 0) | (wanted >= embedding.vocabulary)]
    if bad.size:
        raise InvalidInputError(
            "token ids",
            got=f"id {bad[0]}",
            expected=f"0 to {embedding.vocabulary - 1}",
            fix="use the tokenizer of this model",
        )
    layout = embedding.layout
    result = np.empty((len(wanted), layout.columns), dtype_from_name(layout.dtype))
    part_of = wanted // layout.rows
    for part in np.unique(part_of):
        here = part_of == part
        result[here] = decode_rows(embedding.parts[part], layout, wanted[here] % layout.rows)
    return result
