"""Small pruning problems, and how large the error of an answer is."""

from __future__ import annotations

import jax
import numpy as np

from endor_jax.prune.pruned import Pruned
from endor_jax.prune.structure import Structure, parse_structure

TWO_OF_FOUR = parse_structure("2:4")
ROWS, COLUMNS = 8, 138


def problem(seed: int, *, columns: int = COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and Σ x xᵀ of inputs that are correlated and of different norms."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((columns, columns)) / np.sqrt(columns) + np.eye(columns)
    inputs = random.standard_normal((3 * columns, columns)) @ mixing * np.exp(random.standard_normal(columns))
    weight = random.standard_normal((ROWS, columns))
    return weight.astype(np.float32), (inputs.T @ inputs).astype(np.float32)


def share(structure: Structure, sparsity: float = 0.5) -> float | None:
    """The sparsity to ask for: none where groups fix it."""
    return None if structure.scope == "group" else sparsity


def error(weight: np.ndarray, pruned: np.ndarray | jax.Array, gram: np.ndarray) -> float:
    """‖(W − Ŵ)X‖²."""
    difference = weight.astype(np.float64) - np.asarray(pruned, np.float64)
    return float(np.sum((difference @ gram.astype(np.float64)) * difference))


def assert_sound(result: Pruned) -> None:
    """The mask says what is not zero, no -0.0, nothing that is not finite."""
    weight, mask = np.asarray(result.weight), np.asarray(result.mask)
    np.testing.assert_array_equal(mask, weight != 0)
    assert not np.signbit(weight[~mask]).any()
    assert np.isfinite(weight).all()
