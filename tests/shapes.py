"""Named shapes with their sparsities: the one table that conformance suites and benchmarks run through.

All are small; each is there for an edge of the format: a tail of a bitmap word, a tail of a segment, one
column, several segments, another rank, nothing stored, everything stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from endor_jax.arrays import FLOAT_FORMATS, dtype_from_name


@dataclass(frozen=True)
class NamedShape:
    """A shape and the fraction of zeros its arrays have."""

    name: str
    shape: tuple[int, ...]
    sparsity: float

    def __str__(self) -> str:
        return self.name


SHAPES = (
    NamedShape("square", (64, 64), 0.5),
    NamedShape("one_row", (1, 96), 0.5),
    NamedShape("one_column", (33, 1), 0.5),
    NamedShape("one_element", (1, 1), 0.0),
    NamedShape("word_tail", (7, 45), 0.3),
    NamedShape("one_segment", (3, 1024), 0.5),
    NamedShape("two_segments", (3, 2048), 0.7),
    NamedShape("segment_of_one_column", (4, 1025), 0.5),
    NamedShape("segment_tail", (2, 2500), 0.6),
    NamedShape("rank_3", (2, 5, 48), 0.5),
    NamedShape("rank_4", (2, 2, 3, 20), 0.2),
    NamedShape("nothing_stored", (4, 70), 1.0),
    NamedShape("everything_stored", (6, 130), 0.0),
    NamedShape("almost_empty", (16, 100), 0.98),
)

BY_NAME = {named.name: named for named in SHAPES}


def weights(named: NamedShape, dtype: str, *, specials: bool = True, seed: int = 0) -> np.ndarray:
    """Normal weights with their zeros; `specials` strews NaN, infinities, subnormals and −0.0 in."""
    random = np.random.default_rng(seed + math.prod(named.shape))
    number = FLOAT_FORMATS[dtype]
    array = (random.standard_normal(named.shape) * 0.02).astype(dtype_from_name(dtype))
    bits = array.view(number.unsigned)
    if specials:
        top, infinity = 1 << (number.bits - 1), number.exponent_maximum << number.mantissa_bits
        patterns = [top, 1, top | 3, infinity, top | infinity, infinity | 1, top | infinity | 5, infinity - 1]
        where = random.random(named.shape) < 0.02
        bits[where] = random.choice(np.array(patterns, number.unsigned), named.shape)[where]
    bits[random.random(named.shape) < named.sparsity] = 0
    return array
