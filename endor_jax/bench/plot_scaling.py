"""Picture of a scaling record: tokens per second over devices, as predicted, by the closed form, measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from endor_jax.bench.drawing import OURS_COLORS, PEER_COLORS, panels, write
from endor_jax.bench.scaling import ScalingRecord, ScalingRow


def plot_scaling(record: ScalingRecord, path: Path) -> None:
    """A panel for the slowed store, one for the page cache."""
    figure, axes = panels(1, 2, height=3.6)
    for axis, slowed in zip(axes[0], (True, False), strict=True):
        _panel(axis, record.on(slowed=slowed))
    settings = record.settings
    title = f"{settings.model}, {settings.layers} layers, tensor parallel, {settings.sequences} sequence(s)"
    write(figure, title, path)


def _panel(axis: Any, rows: Sequence[ScalingRow]) -> None:
    devices = [row.row.devices for row in rows]
    rates = [row.tokens_per_second for row in rows]
    ideal = [rates[0] * number / devices[0] for number in devices]
    axis.plot(devices, ideal, ":", color=PEER_COLORS[-1], label="as the devices")
    if all(row.predicted is not None for row in rows):
        axis.plot(devices, [row.predicted for row in rows], "--s", color=PEER_COLORS[1], markersize=4,
                  label="predicted before")  # fmt: skip
    if rows[0].row.rate is not None and all(row.closed_form is not None for row in rows):
        closed = [row.closed_form.tokens_per_second for row in rows if row.closed_form is not None]
        axis.plot(devices, closed, "-", color=OURS_COLORS[2], label="closed form")
    axis.plot(devices, rates, "o", color=OURS_COLORS[0], markersize=5, label="measured")
    for row in rows:
        samples = [row.sequences / seconds for seconds in row.passes.seconds]
        axis.plot([row.row.devices] * len(samples), samples, ".", color="black", markersize=2)
        axis.annotate(f"{row.tokens_per_second:.2f}", (row.row.devices, row.tokens_per_second), fontsize=8,
                      xytext=(5, -9), textcoords="offset points")  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(devices, [str(number) for number in devices])
    axis.set_xlabel("devices", fontsize=8)
    axis.set_ylabel("tokens/s", fontsize=8)
    axis.set_title(rows[0].row.store, fontsize=9)
    axis.legend(fontsize=7)
