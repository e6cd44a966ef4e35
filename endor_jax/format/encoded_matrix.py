"""The pieces of one encoded matrix, before they have a place in a part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EncodedMatrix:
    """What an encoder makes of one matrix; every encoder makes the same.

    bitmap: (rows, words_per_row) uint32, None for dense codecs. counts: (rows, segments) fields per segment.
    bases: (rows, segments) uint8, of packed codecs. scales: (rows, groups) float16, of those that quantise.
    stream: uint32 words of all fields. escape_index: (n,) uint32 row-major element indices, ascending.
    escape_bits: (n,) those elements. nonzero: elements other than +0.0.
    """

    bitmap: np.ndarray | None
    counts: np.ndarray
    bases: np.ndarray | None
    scales: np.ndarray | None
    stream: np.ndarray
    escape_index: np.ndarray
    escape_bits: np.ndarray
    nonzero: int
