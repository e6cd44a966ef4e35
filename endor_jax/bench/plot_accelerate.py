"""Picture of an offloading record: seconds per token of each contender, and the limit of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from endor_jax.bench.accelerate import OffloadCase, OffloadRecord
from endor_jax.bench.drawing import LABEL, colors_of, panels, threads_in_words, write


def plot_accelerate(record: OffloadRecord, path: Path) -> None:
    """A panel per condition: bars of medians with quartiles, a mark at each limit."""
    figure, axes = panels(1, len(record.cases), height=2.6)
    for axis, case in zip(axes[0], record.cases, strict=True):
        _panel(axis, case)
    settings, threads = record.settings, threads_in_words(record.threads)
    shape = f"{settings.model}, {record.layers} layers, {settings.sparsity:.0%} sparsity"
    write(figure, f"{shape}, offloaded to {settings.offload}, {record.device}, {threads}", path)


def _panel(axis: Any, case: OffloadCase) -> None:
    names = [timing.contender for timing in case.timings]
    colors = colors_of(names)
    for place, timing in enumerate(case.timings):
        median, limit = timing.median_seconds, case.limit_seconds(timing)
        lower, upper = timing.quartile_seconds
        axis.barh(place, median, color=colors[timing.contender])
        axis.plot([lower, upper], [place, place], color="black", linewidth=1.2)
        label = "limit" if place == 0 else None
        axis.plot([limit, limit], [place - 0.4, place + 0.4], color="#b2182b", linewidth=2, label=label)
        axis.text(max(median, upper), place, f"  {median:.3f}", **LABEL)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_xlabel("seconds per token", fontsize=8)
    axis.set_title(f"{case.condition}: limit from {case.rate.source}", fontsize=9)
    axis.legend(fontsize=7, loc="lower right")
