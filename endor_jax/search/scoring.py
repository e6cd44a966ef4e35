"""How good a try is: the losses of a checkpoint on some blocks, beside those of the dense one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from endor_jax.evaluate.perplexity import losses_of_blocks, of_losses, standard_error
from endor_jax.generate.model import load
from endor_jax.memory import give_back
from endor_jax.search.result import Quality

BATCH = 4
"""Blocks that pass through the layers together, as in `endor perplexity`."""


def block_losses(
    path: Path, blocks: Int[np.ndarray, "blocks length"], *, progress: Callable[[int, int], None]
) -> Float[np.ndarray, "blocks targets"]:
    """Float32 negative log-likelihoods of every token but the first of each block.

    progress: called with (blocks done, blocks in all). Raises what `load` raises.
    """
    with load(path, context=blocks.shape[1], batch=BATCH) as model:
        losses = losses_of_blocks(model, blocks, progress=progress)
    give_back()
    return losses


def quality_of(
    losses: Float[np.ndarray, "blocks targets"], dense: Float[np.ndarray, "blocks targets"]
) -> Quality:
    """The perplexity of a checkpoint beside that of the dense one, from the losses of both on one text."""
    # A model that pruning broke may have losses that are none; no limit holds them.
    with np.errstate(over="ignore", invalid="ignore"):
        difference = (losses.astype(np.float64) - dense).ravel()
        increase = float(np.expm1(difference.mean()))
        return Quality(
            perplexity=of_losses(losses.ravel()).value,
            dense_perplexity=of_losses(dense.ravel()).value,
            increase=increase,
            standard_error=(1 + increase) * standard_error(difference),
            tokens=difference.size,
        )
