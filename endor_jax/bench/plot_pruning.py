"""A picture of a pruning record: perplexity over sparsity by method, and over bytes by codec and method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from endor_jax.bench.drawing import panels, write
from endor_jax.bench.plots import MARKERS
from endor_jax.bench.pruning_record import MeasuredCell, PruningRecord
from endor_jax.bench.pruning_table import VALUES, ordered_cells, series_names

SHADES = {
    "magnitude": ("#d94801", "#fd8d3c", "#fdbe85"),
    "wanda": ("#08519c", "#3182bd", "#6baed6", "#9ecae1"),
    "sparsegpt": ("#54278f", "#807dba", "#9e9ac8", "#bcbddc", "#c51b8a"),
    "admm": ("#006d2c", "#31a354", "#74c476", "#a1d99b"),
}
"""A colour per method, a shade and a marker per variant of it; again from the first if there are more."""
VALUE_MARKERS: dict[str, str] = dict(zip(VALUES, "osD", strict=True))
VALUE_LINES = {"auto": "-", "int8": "--", "int4": ":"}
DENSE = "black"
TICKS = (1, 1.1, 1.2, 1.3, 1.5, 2, 3, 5, 10, 20, 30)
TOPS = 30.0, 3.0
"""The largest ratio that each panel shows: beyond, a text is ruined, and nobody chooses between ruins."""


def plot_pruning(record: PruningRecord, path: Path) -> None:
    """Left: values that lose nothing, a line per method. Right: all, a line per method and values."""
    figure, axes = panels(1, 2, height=4.6)
    over_sparsity, over_bytes = axes[0]
    cells, names = ordered_cells(record), series_names(record)
    variants: Counter[str] = Counter()
    for name in names:
        own = [each for each in cells if each.cell.series == name]
        method = own[0].cell.method
        variant, shades = variants[method], SHADES[method]
        variants[method] += 1
        color, marker = shades[variant % len(shades)], MARKERS[variant % len(MARKERS)]
        exact = [(100 * each.cell.sparsity, each) for each in own if each.cell.values == "auto"]
        _line(over_sparsity, exact, color=color, marker=marker, line="-", label=name)
        for values in dict.fromkeys(each.cell.values for each in own):
            points = [(each.bytes_per_weight, each) for each in own if each.cell.values == values]
            marker, line = VALUE_MARKERS.get(values, "x"), VALUE_LINES.get(values, "-.")
            _line(over_bytes, points, color=color, marker=marker, line=line, label=f"{name}, {values}")
    for each in cells:
        if each.cell.method == "none":
            marker, label = VALUE_MARKERS.get(each.cell.values, "x"), f"dense, {each.cell.values}"
            points = [(each.bytes_per_weight, each)]
            _line(over_bytes, points, color=DENSE, marker=marker, line="", label=label)
    _frame(over_sparsity, "zeros in the layers' matrices, %", top=TOPS[0])
    _frame(over_bytes, "stored bytes per weight of the layers' matrices", top=TOPS[1])
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
) -> None:
    """Nothing for no points."""
    if not points:
        return
    x = [place for place, _ in points]
    ratios = [each.ratio for _, each in points]
    errors = [each.ratio_standard_error for _, each in points]
    axis.errorbar(
        x, ratios, yerr=errors, color=color, marker=marker, linestyle=line, markersize=5, label=label,
        linewidth=1.2, elinewidth=0.8,
    )  # fmt: skip


def _frame(axis: Any, label: str, *, top: float) -> None:
    shown = [tick for tick in TICKS if tick <= top]
    axis.set_yscale("log")
    axis.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_yticks([], minor=True)
    axis.set_ylim(0.95, top)
    axis.axhline(1, color=DENSE, linewidth=0.8, linestyle=":")
    axis.set_xlabel(label, fontsize=8)
    axis.set_ylabel(f"perplexity, times the dense model's (up to {top:g} shown)", fontsize=8)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=7)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=6)
