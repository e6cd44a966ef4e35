"""Picture of a streaming record: the loop beside its stages, tokens per second over budgets and sequences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from endor_jax.bench.drawing import OURS_COLORS, PEER_COLORS, panels, write
from endor_jax.bench.stream import StreamRecord
from endor_jax.bench.stream_cases import StreamCase

BARS = {
    "read": OURS_COLORS[3],
    "transfer": OURS_COLORS[4],
    "compute": OURS_COLORS[2],
    "loop": OURS_COLORS[0],
    "no overlap": PEER_COLORS[2],
    "dense, read only": PEER_COLORS[0],
}


def plot_stream(record: StreamRecord, path: Path) -> None:
    """A panel of stores for each number of sequences, one of the sweep, one of batches."""
    numbers = sorted({case.sequences for case in record.cases})
    count = len(numbers) + bool(record.sweep) + 1
    figure, axes = panels(-(-count // 2), 2, height=3.2)
    flat = [axis for row in axes for axis in row]
    for axis, number in zip(flat, numbers, strict=False):
        _stores(axis, [case for case in record.cases if case.sequences == number])
    if record.sweep:
        _sweep(flat[len(numbers)], record)
    _batch(flat[count - 1], record)
    for axis in flat[count:]:
        axis.set_axis_off()
    model = Path(record.settings.model).stem
    write(figure, f"{model}, {record.settings.sparsity:.0%} sparsity, {record.device}", path)


def _seconds(case: StreamCase, name: str) -> float | None:
    """Median of what a bar shows; None if it was not measured."""
    others = {"loop": case.loop, "no overlap": case.one_after_another, "dense, read only": case.dense}
    passes = others[name] if name in others else case.alone.get(name)
    return None if passes is None else passes.median_seconds


def _stores(axis: Any, cases: list[StreamCase]) -> None:
    """A group of bars for each store."""
    shown = [name for name in BARS if any(_seconds(case, name) is not None for case in cases)]
    width = 0.85 / len(shown)
    for number, name in enumerate(shown):
        heights = [(place, _seconds(case, name)) for place, case in enumerate(cases)]
        there = [
            (place + (number - len(shown) / 2 + 0.5) * width, height) for place, height in heights if height
        ]
        axis.bar(*zip(*there, strict=True), width, color=BARS[name], label=name)
    for place, case in enumerate(cases):
        top = max(seconds for name in shown if (seconds := _seconds(case, name)) is not None)
        axis.text(place, 1.1 * top, f"{case.of_slowest:.2f}", ha="center", fontsize=8)
    axis.set_xticks(range(len(cases)), [case.store for case in cases], fontsize=7, rotation=20)
    axis.set_ylabel("seconds per pass", fontsize=8)
    axis.set_yscale("log")
    axis.set_ylim(top=4 * axis.get_ylim()[1])  # room for the legend
    axis.set_title(f"{cases[0].sequences} sequence(s); number: loop / slowest stage alone", fontsize=9)
    axis.legend(fontsize=7, ncols=3, loc="upper center")


def _sweep(axis: Any, record: StreamRecord) -> None:
    resident = [point.predicted.resident_bytes / 2**20 for point in record.sweep]
    predictions = [point.predicted.prediction for point in record.sweep]
    predicted = [math.nan if each is None else each.tokens_per_second for each in predictions]
    samples = [[1 / seconds for seconds in point.passes.quartile_seconds] for point in record.sweep]
    achieved = [point.tokens_per_second for point in record.sweep]
    axis.fill_between(resident, [0.8 * rate for rate in achieved], [1.2 * rate for rate in achieved],
                      color=OURS_COLORS[4], alpha=0.5, linewidth=0, label="within 20 %")  # fmt: skip
    axis.plot(resident, predicted, "--s", color=PEER_COLORS[1], markersize=4, label="predicted before")
    axis.plot(resident, achieved, "-o", color=OURS_COLORS[0], markersize=4, label="achieved")
    axis.vlines(resident, [low for _, low in samples], [high for high, _ in samples], color=OURS_COLORS[0])
    axis.set_xlabel("MiB resident", fontsize=8)
    axis.set_ylabel("tokens/s", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.set_title(f"budgets, {record.settings.reader}", fontsize=9)
    axis.legend(fontsize=7)


def _batch(axis: Any, record: StreamRecord) -> None:
    sequences = [point.sequences for point in record.batch]
    rates = [point.tokens_per_second for point in record.batch]
    axis.plot(sequences, rates, "-o", color=OURS_COLORS[0], markersize=4)
    for point in record.batch:
        axis.plot([point.sequences] * len(point.rates), point.rates, ".", color="black", markersize=3)
        axis.text(point.sequences, point.tokens_per_second, f"  {point.tokens_per_second:.1f}", fontsize=8)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(sequences, [str(number) for number in sequences])
    axis.set_xlabel("sequences under way", fontsize=8)
    axis.set_ylabel("tokens/s", fontsize=8)
    axis.set_title(f"batches, {record.settings.reader}: {record.batch_gain:.1f} times", fontsize=9)
