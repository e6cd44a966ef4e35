"""Pictures of what a device did: shares of the copy bandwidth over sparsity, ratios to dense over rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from endor_jax.bench.device_expand import DeviceExpandCase, DeviceExpandRecord
from endor_jax.bench.device_linear import EXPANDED, LINEAR, DeviceLinearCase, DeviceLinearRecord
from endor_jax.bench.drawing import panels, write
from endor_jax.bench.matrices import Shape, shape_name

COLORS = ("#08519c", "#a63603", "#238b45", "#6a51a3", "#e6550d", "#737373")
WIDTH = 3


def plot_device_expand(record: DeviceExpandRecord, path: Path) -> None:
    """A panel per shape: share of the copy bandwidth over sparsity, a line per codec; dashed: not ours."""
    shapes = list(dict.fromkeys(case.cell.shape for case in record.cases))
    codecs = list(dict.fromkeys(case.cell.codec for case in record.cases))
    figure, axes = _panels(len(shapes))
    for axis, shape in zip(axes, shapes, strict=False):
        cases = [case for case in record.cases if case.cell.shape == shape]
        _expand_panel(axis, shape, cases, record, codecs)
    _legend(figure, axes)
    write(figure, f"expand on {record.device.kind}: read and written bytes, share of a copy's", path)


def _expand_panel(
    axis: Any,
    shape: Shape,
    cases: Sequence[DeviceExpandCase],
    record: DeviceExpandRecord,
    codecs: Sequence[str],
) -> None:
    for place, name in enumerate(record.settings.implementations):
        for codec, color in zip(codecs, COLORS * len(codecs), strict=False):
            found = [
                (100 * case.cell.sparsity, case.share(timing))
                for case in cases
                for timing in case.timings
                if timing.contender == name and case.cell.codec == codec
            ]
            style = "--" if place else "-"
            if found:
                axis.plot(*zip(*sorted(found), strict=True), style, color=color, marker="o", markersize=3)
                axis.lines[-1].set_label(f"{name} {codec}")
    axis.axhline(1, color="black", linestyle=":", linewidth=1)
    axis.set_ylim(bottom=0)
    axis.set_title(shape_name(shape), fontsize=9)
    axis.set_xlabel("% zeros", fontsize=8)
    axis.set_ylabel("of the copy bandwidth", fontsize=8)
    axis.grid(alpha=0.3)


def plot_device_linear(record: DeviceLinearRecord, path: Path) -> None:
    """A panel per shape and codec: how many times as fast as dense, over rows of x, a line per sparsity;
    dashed: expanded first; dotted: the limit."""
    keys = list(dict.fromkeys((case.cell.shape, case.cell.codec) for case in record.cases))
    sparsities = sorted({case.cell.sparsity for case in record.cases})
    figure, axes = _panels(len(keys))
    for axis, (shape, codec) in zip(axes, keys, strict=False):
        cases = [case for case in record.cases if (case.cell.shape, case.cell.codec) == (shape, codec)]
        for sparsity, color in zip(sparsities, COLORS * len(sparsities), strict=False):
            chosen = sorted(
                (case for case in cases if case.cell.sparsity == sparsity), key=lambda case: case.cell.rows
            )
            _linear_lines(axis, chosen, color)
        axis.axhline(1, color="black", linewidth=1)
        axis.set_xscale("log", base=2)
        rows = sorted({case.cell.rows for case in cases})
        axis.set_xticks(rows, [str(number) for number in rows])
        axis.set_ylim(bottom=0)
        axis.set_title(f"{shape_name(shape)}, {codec}", fontsize=9)
        axis.set_xlabel("rows of x", fontsize=8)
        axis.set_ylabel("times as fast as dense", fontsize=8)
        axis.grid(alpha=0.3)
    _legend(figure, axes)
    write(figure, f"x @ w.T on {record.device.kind}, {record.settings.dtype}: beside the dense product", path)


def _linear_lines(axis: Any, cases: Sequence[DeviceLinearCase], color: str) -> None:
    for contender, style in ((LINEAR, "-"), (EXPANDED, "--")):
        found = [
            (case.cell.rows, ratio)
            for case in cases
            if (timing := case.timing(contender)) and (ratio := case.ratio(timing)) is not None
        ]
        if found:
            label = f"{contender}, {cases[0].cell.sparsity:.0%}"
            axis.plot(*zip(*found, strict=True), style, color=color, marker="o", markersize=3, label=label)
    limits = [(case.cell.rows, case.limit_ratio) for case in cases if case.limit_ratio is not None]
    if limits:
        label = f"limit, {cases[0].cell.sparsity:.0%}"
        axis.plot(*zip(*limits, strict=True), ":", color=color, linewidth=1, label=label)


def _panels(count: int) -> tuple[Any, list[Any]]:
    """Axes for so many panels, row by row; those left over are hidden."""
    width = min(WIDTH, count)
    figure, axes = panels(-(-count // width), width, height=3.4)
    flat = [axis for row in axes for axis in row]
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """One for all panels, of every label once."""
    labels = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=4, fontsize=7, handlelength=4
    )
