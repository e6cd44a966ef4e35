"""A picture of a timeline's last passes, with matplotlib: a row per track, a box per record."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from endor_jax.streaming.timeline import Span, Stage
from endor_jax.streaming.tracks import Steady, pass_starts, track, tracks

WORK_COLORS = "#3182bd", "#9ecae1"
"""In turns, so that boxes that touch are told apart."""
WAIT_COLORS: dict[Stage, str] = {
    "wait for read": "#a63603",
    "wait for transfer": "#fd8d3c",
    "wait for step": "#737373",
}


def plot_trace(spans: Sequence[Span], shown: Steady, path: Path, *, title: str) -> None:
    """The passes of `shown`, from its start to its end."""
    figures: Any = importlib.import_module("matplotlib.figure")
    patches: Any = importlib.import_module("matplotlib.patches")
    names = tracks(spans)
    figure = figures.Figure(figsize=(11, 0.4 * len(names) + 1.6), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(names):
        _row(axis, place, [span for span in spans if track(span) == name], shown)
    for begin in pass_starts(spans):
        if shown.start_seconds <= begin < shown.end_seconds:
            axis.axvline(1e3 * (begin - shown.start_seconds), color="black", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1e3 * (shown.end_seconds - shown.start_seconds))
    axis.set_xlabel("milliseconds; dashed: a pass begins", fontsize=8)
    legend = [patches.Patch(color=color, label=stage) for stage, color in WAIT_COLORS.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize=8)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _row(axis: Any, place: int, spans: Sequence[Span], shown: Steady) -> None:
    """The boxes of one track."""
    start, end = shown.start_seconds, shown.end_seconds
    boxes, colors = [], []
    for number, span in enumerate(sorted(spans, key=lambda span: span.start_seconds)):
        left, right = max(span.start_seconds, start), min(span.end_seconds, end)
        if left < right:
            boxes.append((1e3 * (left - start), 1e3 * (right - left)))
            colors.append(WAIT_COLORS.get(span.stage, WORK_COLORS[number % 2]))
    axis.broken_barh(boxes, (place - 0.4, 0.8), facecolors=colors)
