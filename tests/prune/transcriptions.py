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


def inverse_factor(gram: np.ndarray, damping: float) -> np.ndarray:
    """Upper Cholesky factor of (XXᵀ + λI)⁻¹, λ = damping · mean diagonal (arXiv 2301.00774, section 4)."""
    damped = gram.astype(np.float64).copy()
    columns = len(damped)
    for c in range(columns):
        damped[c, c] += damping * sum(float(gram[i, i]) for i in range(columns)) / columns
    return np.linalg.cholesky(np.linalg.inv(damped)).T


def sparsegpt(
    weight: np.ndarray,
    gram: np.ndarray,
    sparsity: float | None,
    structure: Structure,
    *,
    bits: int | None = None,
    mask: np.ndarray | None = None,
    block: int = 128,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and mask of arXiv 2301.00774, Algorithm 1, with section 3.5 if there are bits; damping 0.01.

    The mask of a block takes what is missing to the whole number of zeros due after it.
    """
    w, u = weight.astype(np.float64).copy(), inverse_factor(gram, 0.01)
    rows, columns = w.shape
    keep = np.ones((rows, columns), bool) if mask is None else mask.copy()
    width = block if structure.scope != "group" else structure.of
    for i in range(0, columns, block):
        inside = range(i, min(i + block, columns))
        scores = np.array([[(w[r, c] / u[c, c]) ** 2 for c in inside] for r in range(rows)])
        if mask is None and structure.scope != "group":
            keep[:, i : i + block] = _mask_so_far(scores, keep[:, :i], sparsity, structure)
        scales = None
        if bits is not None:
            kept = mask_of_scores(scores, None, structure) if structure.scope == "group" else keep[:, inside]
            scales = [_scale(w[r, inside], kept[r], u.diagonal()[inside], bits) for r in range(rows)]
        errors = np.zeros((rows, columns))
        for j in inside:
            group = range(j, min(j + width, columns))
            if mask is None and structure.scope == "group" and j % structure.of == 0:
                scores = np.array([[(w[r, c] / u[c, c]) ** 2 for c in group] for r in range(rows)])
                keep[:, group] = mask_of_scores(scores, None, structure)
            for r in range(rows):
                stays = w[r, j] if scales is None else _rounded(w[r, j], scales[r], bits)
                stays = stays if keep[r, j] else 0.0
                errors[r, j] = (w[r, j] - stays) / u[j, j]
                for k in range(j + 1, inside.stop):
                    w[r, k] -= errors[r, j] * u[j, k]
                w[r, j] = stays
        for r in range(rows):
            for k in range(inside.stop, columns):
                w[r, k] -= sum(errors[r, j] * u[j, k] for j in inside)
    return w, w != 0


def _mask_so_far(
    scores: np.ndarray, before: np.ndarray, sparsity: float | None, structure: Structure
) -> np.ndarray:
    """Drop the lowest scores of a block until the share of all columns so far is gone, per row or in all."""
    rows, columns = scores.shape
    gone = before.shape[1]
    keep = np.ones((rows, columns), bool)
    parts = [range(rows)] if structure.scope == "matrix" else [[r] for r in range(rows)]
    for part in parts:
        due = count_dropped(sparsity, len(part) * (gone + columns)) - count_dropped(
            sparsity, len(part) * gone
        )
        places = sorted(((r, c) for r in part for c in range(columns)), key=lambda place: scores[place])
        for place in places[:due]:
            keep[place] = False
    return keep


def _rounded(weight: float, scale: float, bits: int | None) -> float:
    largest = {8: 127, 4: 7}[bits or 8]
    return max(-largest, min(largest, round(weight / scale))) * scale if scale else 0.0


def _scale(weight: np.ndarray, keep: np.ndarray, pivots: np.ndarray, bits: int) -> float:
    """Of 21 float16 scales, from all to half of the largest weight, that of least Σ ((w − q·scale)/U_cc)²."""
    kept = [c for c in range(len(weight)) if keep[c]]
    top = max((abs(float(weight[c])) for c in kept), default=0.0) / {8: 127, 4: 7}[bits]
    scales = [float(np.float16(top * (1 - step / 40))) for step in range(21)]
    costs = [
        sum(((weight[c] - _rounded(weight[c], scale, bits)) / pivots[c]) ** 2 for c in kept)
        for scale in scales
    ]
    return scales[costs.index(min(costs))]


def outlier_ratio(scores: list[np.ndarray], multiple: float) -> float:
    """Layerwise outlier distribution of arXiv 2310.05175 (section 3): the share of A_ij above M · mean(A)."""
    every = [float(score) for matrix in scores for score in matrix.ravel()]
    mean = sum(every) / len(every)
    return sum(score > multiple * mean for score in every) / len(every)


def owl(ratios: list[float], sparsity: float, spread: float) -> list[float]:
    """As the official code scales ratios: kept = r' − mean(r') + 1 − S, r' in [0, 2λ]."""
    stretched = [(ratio - min(ratios)) / (max(ratios) - min(ratios)) * spread * 2 for ratio in ratios]
    mean = sum(stretched) / len(stretched)
    return [1 - (ratio - mean + 1 - sparsity) for ratio in stretched]


def admm(
    weight: np.ndarray, gram: np.ndarray, sparsity: float | None, structure: Structure
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and mask of arXiv 2401.02938, Algorithms 1 and 3, with the official code's 20 iterations, 15 of
    them gradual, damping 0.1 and ρ = 1; the paper's letters."""
    rows, columns = weight.shape
    norm = [math.sqrt(gram[c, c]) + 1e-8 for c in range(columns)]
    xx = np.array([[gram[i, j] / norm[i] / norm[j] for j in range(columns)] for i in range(columns)])
    damping = 0.1 * sum(xx[c, c] for c in range(columns)) / columns
    for c in range(columns):
        xx[c, c] += damping
    dense = np.array([[float(weight[r, c]) * norm[c] for r in range(rows)] for c in range(columns)])
    xy = xx @ dense
    inverse = np.linalg.inv(xx + np.eye(columns))
    w, u = dense.copy(), np.zeros((columns, rows))
    keep = np.ones((columns, rows), bool)
    for iteration in range(20):
        if iteration < 15:
            keep = _gradual_mask(np.abs(w + u).T, 1 - (1 - (iteration + 1) / 15) ** 3, sparsity, structure).T
        z = np.where(keep, w + u, 0.0)
        u = u + (w - z)
        w = inverse @ (xy + (z - u))
    z = np.where(keep, w + u, 0.0)
    return np.array([[z[c, r] / norm[c] for c in range(columns)] for r in range(rows)]), keep.T


def _gradual_mask(
    scores: np.ndarray, progress: float, sparsity: float | None, structure: Structure
) -> np.ndarray:
    """A share of what the final mask of these scores drops, the lowest: of every row, or of the matrix."""
    final = mask_of_scores(scores, sparsity, structure)
    keep = np.ones(scores.shape, bool)
    each = [[r] for r in range(len(scores))] if structure.scope == "row" else [range(len(scores))]
    for part in each:
        places = [(r, c) for r in part for c in range(scores.shape[1]) if not final[r, c]]
        places.sort(key=lambda place: scores[place])
        for place in places[: count_dropped(progress, len(places))]:
            keep[place] = False
    return keep
