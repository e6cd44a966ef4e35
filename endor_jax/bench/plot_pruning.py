"""A picture of a pruning record: perplexity over sparsity by method, and over bytes by codec and method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from endor_jax.bench.drawing import OURS_COLORS, PEER_COLORS, panels, write
from endor_jax.bench.plots import MARKERS
from endor_jax.bench.pruning_record import MeasuredCell, PruningRecord
from endor_jax.bench.pruning_table import VALUES, ordered_cells

COLORS = (PEER_COLORS[2], OURS_COLORS[2], OURS_COLORS[0], PEER_COLORS[0], "#31a354", "#756bb1", "#636363")
"""Of methods, in the order in which they appear; again from the first if there are more."""
VALUE_MARKERS: dict[str, str] = dict(zip(VALUES, "osD", strict=True))
VALUE_LINES = {"auto": "-", "int8": "--", "int4": ":"}
DENSE = "black"


def plot_pruning(record: PruningRecord, path: Path) -> None:
    """Left: values that lose nothing, a line per method. Right: all, a line per method and values."""
    figure, axes = panels(1, 2, height=4.2)
    over_sparsity, over_bytes = axes[0]
    pruned = [each for each in ordered_cells(record) if each.cell.method != "none"]
    names = dict.fromkeys(each.cell.series for each in pruned)
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    markers = {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(names)}
    for name in names:
        exact = [each for each in pruned if each.cell.series == name and each.cell.values == "auto"]
        points = [(100 * each.cell.sparsity, each) for each in exact]
        _line(over_sparsity, points, color=colors[name], marker=markers[name], line="-", label=name)
        for values in dict.fromkeys(each.cell.values for each in pruned):
            own = [each for each in pruned if (each.cell.series, each.cell.values) == (name, values)]
            points = sorted(((each.bytes_per_weight, each) for each in own), key=lambda point: point[0])
            marker, line = VALUE_MARKERS.get(values, "x"), VALUE_LINES.get(values, "-.")
            _line(over_bytes, points, color=colors[name], marker=marker, line=line, label=f"{name}, {values}")
    for each in ordered_cells(record):
        if each.cell.method == "none":
            marker, label = VALUE_MARKERS.get(each.cell.values, "x"), f"dense, {each.cell.values}"
            points = [(each.bytes_per_weight, each)]
            _line(over_bytes, points, color=DENSE, marker=marker, line="", label=label, size=8)
    _frame(over_sparsity, "zeros in the layers' matrices, %")
    _frame(over_bytes, "stored bytes per weight of the layers' matrices")
    settings = record.settings
    scored = f"{settings['evaluation_blocks']} blocks of {settings['length']} tokens"
    title = f"{settings['model']}, {settings['dtype']}: perplexity beside the dense model, {scored}"
    write(figure, title, path)


def _line(
    axis: Any,
    points: Sequence[tuple[float, MeasuredCell]],
    *,
    color: str,
    marker: str,
    line: str,
    label: str,
    size: int = 5,
) -> None:
    """Nothing for no points."""
    if not points:
        return
    x = [place for place, _ in points]
    ratios = [each.ratio for _, each in points]
    errors = [each.ratio_standard_error for _, each in points]
    axis.errorbar(
        x, ratios, yerr=errors, color=color, marker=marker, linestyle=line, markersize=size, label=label,
        linewidth=1.2, elinewidth=0.8,
    )  # fmt: skip


def _frame(axis: Any, label: str) -> None:
    axis.set_yscale("log")
    axis.axhline(1, color=DENSE, linewidth=0.8, linestyle=":")
    axis.set_xlabel(label, fontsize=8)
    axis.set_ylabel("perplexity, times the dense model's", fontsize=8)
    axis.grid(which="both", alpha=0.25)
    axis.tick_params(labelsize=7)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)
