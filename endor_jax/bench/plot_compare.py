"""A picture of two checkpoints, with matplotlib: where in a block and for how many tokens they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from endor_jax.bench.drawing import LABEL, OURS_COLORS, PEER_COLORS, panels, write
from endor_jax.evaluate.compare import Comparison
from endor_jax.streaming.sizes import format_size

COLORS = (PEER_COLORS[2], OURS_COLORS[1])
"""Of a and b."""
LEAST_DIVERGENCE = 1e-6
"""Nats: a logarithmic axis has no zero."""
PIECES = 32
"""Stretches of a block whose tokens are averaged."""


def plot_comparison(comparison: Comparison, path: Path, *, names: tuple[str, str]) -> None:
    """Perplexity of both over the position in a block; how KL is spread over tokens; bytes of both."""
    figure, axes = panels(1, 3, height=3.4)
    by_position, spread, sizes = axes[0]
    _positions(by_position, comparison, names)
    _spread(spread, comparison)
    _sizes(sizes, comparison, names)
    ratio = f"perplexity × {comparison.ratio:.3f} ± {comparison.ratio_standard_error:.3f}"
    kl, agreement = f"KL {comparison.divergence.mean:.4f} nats", f"agreement {comparison.agreement:.1%}"
    title = f"{names[1]} beside {names[0]}: {ratio}, {kl}, {agreement}, {comparison.tokens:,} tokens"
    write(figure, title, path)


def _positions(axis: Any, comparison: Comparison, names: tuple[str, str]) -> None:
    figures = comparison.figures
    for losses, color, name in zip((figures.losses_a, figures.losses_b), COLORS, names, strict=True):
        places, means = _stretches(losses)
        axis.plot(places, np.exp(means), color=color, label=name)
    axis.set_yscale("log")
    axis.set_xlabel("position in the block, tokens", fontsize=8)
    axis.set_ylabel("perplexity", fontsize=8)
    axis.grid(which="both", alpha=0.3)
    axis.legend(fontsize=8)


def _stretches(values: Float[np.ndarray, "blocks targets"]) -> tuple[np.ndarray, np.ndarray]:
    """Middles of successive stretches of positions, and the means of all blocks in them."""
    pieces = np.array_split(np.arange(values.shape[1]), min(PIECES, values.shape[1]))
    middles = np.array([piece.mean() + 1 for piece in pieces])  # the first target is at position 1
    return middles, np.array([values[:, piece].mean(dtype=np.float64) for piece in pieces])


def _spread(axis: Any, comparison: Comparison) -> None:
    kl, found = comparison.figures.divergence.ravel(), comparison.divergence
    least = max(float(np.percentile(kl, 0.5)), LEAST_DIVERGENCE)
    edges = np.geomspace(least, max(float(kl.max()), 10 * least) * 1.001, 60)
    weights = np.full(kl.size, 100 / kl.size)
    axis.hist(np.maximum(kl, least), bins=edges, weights=weights, color=COLORS[1])
    marks = (("median", found.median, ":"), ("mean", found.mean, "-"), ("99 %", found.percentile_99, "--"))
    for name, value, style in marks:
        label = f"{name} {value:.4g}"
        axis.axvline(max(value, least), color="black", linestyle=style, linewidth=1, label=label)
    axis.set_xscale("log")
    axis.set_xlabel(f"KL divergence of a token, nats (first bar: {least:.1g} and less)", fontsize=8)
    axis.set_ylabel("% of tokens", fontsize=8)
    axis.legend(fontsize=8)


def _sizes(axis: Any, comparison: Comparison, names: tuple[str, str]) -> None:
    sides = comparison.a, comparison.b
    for place, (side, color) in enumerate(zip(sides, COLORS, strict=True)):
        axis.barh(place, side.stored_bytes / 2**20, color=color)
        words = f" {format_size(side.stored_bytes)}, {side.bytes_per_weight:.2f} bytes per weight,\n"
        words += f" {side.sparsity:.0%} zeros"
        if side.tokens_per_second is not None:
            words += f", {side.tokens_per_second:.1f} tokens/s"
        axis.text(0, place, words, **LABEL)
    axis.set_yticks(range(2), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("files, MiB", fontsize=8)
