"""Integers and scales read back out of parts: what an encoder would have to be given to write the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from endor_jax.format.decode import quantised_rows
from endor_jax.format.layout import FieldLayout, matrix_shape
from endor_jax.format.quantise import Quantised


def quantised_of(parts: Sequence[np.ndarray], layout: FieldLayout) -> Quantised:
    """A whole tensor, from all parts."""
    rows, _ = matrix_shape(layout.shape)
    held = [quantised_rows(part, layout, np.arange(layout.rows)) for part in parts]
    return Quantised(
        np.concatenate([share.values for share in held])[:rows],
        np.concatenate([share.scales for share in held])[:rows],
        layout.shape,
        layout.dtype,
    )
