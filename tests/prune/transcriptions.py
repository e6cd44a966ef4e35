"""The papers' methods as loops in float64, plain and slow: what the methods are compared with."""

from __future__ import annotations

import math

import numpy as np

from endor_jax.prune.structure import Structure


def count_dropped(sparsity: float | None, count: int) -> int:
    """At least the sparsity asked for; numbers of the tests are short, so a thousandth more is no element."""
    assert sparsity is not None
    return math.ceil(sparsity * count - 1e-6)


def mask_of_scores(scores: np.ndarray, sparsity: float | None, structure: Structure) -> np.ndarray:
    """Drop the lowest scores of every row, matrix or group; of equals the rightmost (lowest row) first."""
    rows, columns = scores.shape
    keep = np.ones((rows, columns), bool)
    if structure.scope == "matrix":
        places = [(r, c) for r in range(rows) for c in range(columns)]
        order = sorted(places, key=lambda place: (scores[place], -place[0], -place[1]))
        for place in order[: count_dropped(sparsity, rows * columns)]:
            keep[place] = False
        return keep
    for r in range(rows):
        width = columns if structure.scope == "row" else structure.of
        for start in range(0, columns, width):
            members = range(start, min(start + width, columns))
            share = sparsity if structure.scope == "row" else 1 - structure.kept / structure.of
            for c in sorted(members, key=lambda c: (scores[r, c], -c))[: count_dropped(share, len(members))]:
                keep[r, c] = False
    return keep


def wanda(weight: np.ndarray, inputs: np.ndarray, sparsity: float | None, structure: Structure) -> np.ndarray:
    """Mask of arXiv 2306.11695: S_ij = |W_ij| · ‖X_j‖₂ (eq. 1); inputs are (samples, columns)."""
    rows, columns = weight.shape
    scores = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            scores[i, j] = abs(float(weight[i, j])) * math.sqrt(sum(float(x) ** 2 for x in inputs[:, j]))
    return mask_of_scores(scores, sparsity, structure)
