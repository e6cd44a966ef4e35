"""What the pictures of records share: matplotlib, which is optional, colours, a figure without a window."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OURS_COLORS = ("#08519c", "#3182bd", "#6baed6", "#9ecae1", "#c6dbef")
PEER_COLORS = ("#a63603", "#e6550d", "#fd8d3c", "#fdae6b", "#737373")
LABEL: dict[str, Any] = {
    "va": "center",
    "fontsize": 8,
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
}
"""Of a bar: readable where a line passes."""


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """Blue for ours, orange for others."""
    ours = [name for name in names if name.startswith("ours")]
    others = [name for name in names if name not in ours]
    return {
        name: colors[min(index, len(colors) - 1)]
        for group, colors in ((ours, OURS_COLORS), (others, PEER_COLORS))
        for index, name in enumerate(group)
    }


def threads_in_words(number: int) -> str:
    """As in a title."""
    return "1 thread" if number == 1 else f"{number} threads"


def panels(rows: int, columns: int, *, height: float) -> tuple[Any, list[list[Any]]]:
    """A figure without a window, and its axes by row and column."""
    figures: Any = importlib.import_module("matplotlib.figure")
    width = max(6.5, 4.5 * columns)
    figure = figures.Figure(figsize=(width, height * rows + 0.9), layout="constrained")
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def write(figure: Any, title: str, path: Path) -> None:
    """The figure to a file, whose directory is made."""
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
