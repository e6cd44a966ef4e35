"""Pictures of records, with matplotlib: bars for expand and decode, curves for linear."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from endor_jax.bench.bandwidth import MEMCPY, READ
from endor_jax.bench.decode import DecodeRecord
from endor_jax.bench.drawing import LABEL, colors_of, panels, threads_in_words, write
from endor_jax.bench.expand import ExpandCase, ExpandRecord
from endor_jax.bench.linear import EXPANDED, FUSED, LinearCase, LinearRecord
from endor_jax.bench.matrices import shape_name
from endor_jax.errors import MissingDependencyError, OptionError

FORMATS = (".svg", ".png", ".pdf")
MARKERS = "osD^vPX*<>"


def check_plot(path: Path) -> None:
    """Raises before anything is measured: MissingDependencyError without matplotlib, OptionError for a file
    whose name ends in none of FORMATS.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "plot", got="no matplotlib", expected="matplotlib", fix="pip install 'endor_jax[plot]'"
        )
    if path.suffix not in FORMATS:
        raise OptionError(
            "plot", got=str(path), expected=f"a name with {', '.join(FORMATS)}", fix="rename the file"
        )


def plot_expand(record: ExpandRecord, path: Path) -> None:
    """A panel per case: bars of GB/s with their quartiles, memcpy and the limit as lines."""
    numbers = list(dict.fromkeys(case.threads for case in record.cases))
    columns = [[case for case in record.cases if case.threads == number] for number in numbers]
    figure, axes = panels(len(columns[0]), len(columns), height=2.3)
    for column, cases in enumerate(columns):
        for row, case in enumerate(cases):
            _expand_panel(axes[row][column], case)
    title = f"expand, {record.settings.dtype} at {record.settings.sparsity:.0%} sparsity: dense bytes out"
    write(figure, title, path)


def _expand_panel(axis: Any, case: ExpandCase) -> None:
    shown = [timing for timing in case.timings if not timing.contender.startswith((MEMCPY, READ))]
    colors = colors_of([timing.contender for timing in shown])
    for place, timing in enumerate(shown):
        rate = timing.bytes_per_second / 1e9
        spread = sorted(timing.bytes / seconds / 1e9 for seconds in timing.quartile_seconds)
        axis.barh(place, rate, color=colors[timing.contender])
        axis.plot(spread, [place, place], color="black", linewidth=1)
        axis.text(max(rate, spread[1]), place, f" {rate:.1f}", **LABEL)
    copy, limit = case.memcpy_bytes_per_second / 1e9, case.limit_bytes_per_second / 1e9
    axis.axvline(copy, color="black", linestyle="--", linewidth=1, label=f"memcpy {copy:.1f}")
    axis.axvline(limit, color="gray", linestyle=":", linewidth=1, label=f"limit {limit:.1f}")
    axis.set_yticks(range(len(shown)), [timing.contender for timing in shown], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_xlabel("GB/s", fontsize=8)
    axis.set_title(f"{shape_name(case.shape)}, {case.codec}, {threads_in_words(case.threads)}", fontsize=9)
    axis.legend(fontsize=7, loc="lower right")


def plot_linear(record: LinearRecord, path: Path) -> None:
    """A panel per shape and number of threads: weights per second over rows of x, the crossover marked."""
    keys = list(dict.fromkeys((case.shape, case.threads) for case in record.cases))
    width = min(3, len(keys))
    figure, axes = panels(-(-len(keys) // width), width, height=3.8)
    flat = [axis for row in axes for axis in row]
    for axis in flat[len(keys) :]:
        axis.set_visible(False)
    crossovers = {(each.shape, each.threads): each for each in record.crossovers}
    for axis, key in zip(flat, keys, strict=False):
        title = f"{shape_name(key[0])}, {threads_in_words(key[1])}"
        if key in crossovers and (rows := crossovers[key].of_all):
            axis.axvline(rows, color="gray", linestyle=":", linewidth=1)
            title += f", crossover at {rows}"
        axis.set_title(title, fontsize=9)
        _linear_panel(axis, [case for case in record.cases if (case.shape, case.threads) == key])
    handles, labels = flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, 2 * width + 1), fontsize=8)
    settings = record.settings
    title = f"x @ w.T, {settings.dtype}, w {settings.codec} at {settings.sparsity:.0%} sparsity or dense"
    write(figure, title, path)


def _linear_panel(axis: Any, cases: Sequence[LinearCase]) -> None:
    names = [t.contender for t in cases[0].timings if not t.contender.startswith(READ)]
    colors = colors_of(names)
    rows = [case.rows for case in cases]
    for name, marker in zip(names, MARKERS * len(names), strict=False):
        timings = [next(t for t in case.timings if t.contender == name) for case in cases]
        rates = [cases[0].weights / timing.median_seconds / 1e9 for timing in timings]
        spread = [[cases[0].weights / t.quartile_seconds[end] / 1e9 for t in timings] for end in (1, 0)]
        style = "-" if name.startswith(FUSED) else "--" if name.startswith(EXPANDED) else "-."
        axis.plot(rows, rates, style, color=colors[name], marker=marker, markersize=4, label=name)
        axis.fill_between(rows, *spread, color=colors[name], alpha=0.12, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(rows, [str(number) for number in rows])
    axis.set_xlabel("rows of x", fontsize=8)
    axis.set_ylabel("G weights/s", fontsize=8)
    axis.grid(which="major", alpha=0.3)


def plot_decode(record: DecodeRecord, path: Path) -> None:
    """Bars of tokens per second, a dot for every generation."""
    figure, axes = panels(1, 1, height=2.3)
    axis = axes[0][0]
    colors = colors_of([timing.contender for timing in record.timings])
    for place, timing in enumerate(record.timings):
        rates = [each.tokens_per_second for each in timing.generations]
        axis.barh(place, timing.tokens_per_second, color=colors[timing.contender])
        axis.plot(rates, [place] * len(rates), "o", color="black", markersize=3, zorder=4)
        axis.text(max(rates), place, f"  {timing.tokens_per_second:.1f}", **LABEL)
    axis.set_yticks(range(len(record.timings)), [timing.contender for timing in record.timings], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_xlabel("tokens/s", fontsize=8)
    sparsity = f"{record.settings.values} at {record.settings.sparsity:.0%} sparsity"
    write(figure, f"{Path(record.model).stem}, {sparsity}, {threads_in_words(record.threads)}", path)
