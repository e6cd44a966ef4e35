"""A pruned model beside the dense one: perplexity of all scored blocks, KL and agreement of the first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from endor_jax.bench.pruning_text import PruningText
from endor_jax.bench.workloads import make_whole
from endor_jax.evaluate.compare import Comparison, compare
from endor_jax.evaluate.perplexity import Perplexity, of_losses, standard_error
from endor_jax.generate.model import load


@dataclass(frozen=True)
class Dense:
    """The dense model. path: its checkpoint. rest: losses of the blocks after the first."""

    path: Path
    text: PruningText
    divergence_blocks: int
    rest: Float[np.ndarray, " targets"]


@dataclass(frozen=True)
class Scores:
    """perplexity, ratio: of all scored blocks, the ratio's error from losses token by token. first: both
    models on the first blocks."""

    perplexity: Perplexity
    ratio: float
    ratio_standard_error: float
    first: Comparison


def dense_model(path: Path, text: PruningText, *, divergence_blocks: int) -> Dense:
    """Scores the dense model once for all cells, and for later runs: its losses are kept beside it.

    Raises what `load` raises.
    """
    kept = path.with_name(f"{path.stem}-{text.digest}-from-{divergence_blocks}.npy")
    if not kept.exists():
        rest = _losses(path, text.scored[divergence_blocks:])
        make_whole(kept, lambda making: _save(making, rest))
    return Dense(path, text, divergence_blocks, np.load(kept))


def score(checkpoint: Path, dense: Dense) -> Scores:
    """Scores a pruned model. Raises what `compare` raises."""
    first, rest = np.split(dense.text.scored, [dense.divergence_blocks])
    compared = compare(dense.path, checkpoint, first, generated_tokens=0)
    figures = compared.figures
    losses = np.concatenate([figures.losses_b.ravel(), _losses(checkpoint, rest)])
    of_dense = np.concatenate([figures.losses_a.ravel(), dense.rest])
    difference = losses.astype(np.float64) - of_dense
    ratio = float(np.exp(difference.mean()))
    return Scores(of_losses(losses), ratio, ratio * standard_error(difference), compared)


def _save(path: Path, losses: Float[np.ndarray, " targets"]) -> None:
    with path.open("wb") as file:  # np.save would add a suffix
        np.save(file, losses)


def _losses(checkpoint: Path, blocks: np.ndarray) -> Float[np.ndarray, " targets"]:
    """Of every token but the first of each block, one block after another; none for no blocks."""
    if not len(blocks):
        return np.zeros(0, np.float32)
    with load(checkpoint, context=blocks.shape[1]) as model:
        return np.concatenate([model.losses(blocks[i : i + 1])[0] for i in range(len(blocks))])
