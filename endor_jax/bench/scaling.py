"""Tensor parallelism over devices made of the CPU, as predicted beforehand, by the closed form, and measured.

The devices share two processors or so: what is to grow with their number here is what they read. So each has
a disk of its own, slowed down to a rate that binds, as disks and links do on machines with accelerators; and
beside that the page cache as it is, where the processors bind. Every row is measured in processes of its own.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from endor_jax.bench.environment import Environment, environment
from endor_jax.bench.page_cache import check_page_cache, files_below, fill, write_back
from endor_jax.bench.processes import process_with, run
from endor_jax.bench.scaling_turn import Row, Turn, take_turn
from endor_jax.bench.stream_passes import Passes
from endor_jax.bench.workloads import make_whole, workload, write_workload
from endor_jax.conversion.api import convert
from endor_jax.errors import OptionError
from endor_jax.generate.scaling import Estimate, Spread, estimate

DEVICES = (1, 2, 4, 8)


@dataclass(frozen=True)
class ScalingSettings:
    """What is measured: a workload with so many layers, pruned to `sparsity`.

    rate: bytes per second that each device reads from the slowed store. passes, rounds: of a turn, of turns.
    """

    model: str = "llama-1b"
    layers: int = 8
    sparsity: float = 0.5
    devices: tuple[int, ...] = DEVICES
    rate: float = 200e6
    sequences: int = 1
    passes: int = 4
    rounds: int = 3

    def __post_init__(self) -> None:
        if not self.devices or min(self.devices) < 1 or any(max(self.devices) % n for n in self.devices):
            raise OptionError(
                "devices",
                got=str(self.devices),
                expected="numbers from 1 on that divide the largest",
                fix="say 1, 2, 4, 8",
            )


@dataclass(frozen=True)
class ScalingRow:
    """A number of devices on a store, in as many turns as there were rounds."""

    row: Row
    sequences: int
    turns: tuple[Turn, ...]

    @property
    def passes(self) -> Passes:
        """Of all turns."""
        first, *others = (turn.passes for turn in self.turns)
        return sum(others, first)

    @property
    def tokens_per_second(self) -> float:
        """As measured, by the median of all passes."""
        return self.sequences / self.passes.median_seconds

    @property
    def predicted(self) -> float | None:
        """Tokens per second, as said before the first pass."""
        prediction = self.turns[0].prediction
        return None if prediction is None else prediction.tokens_per_second

    @property
    def read_bytes_per_device(self) -> float:
        """In each pass."""
        return self.turns[0].read_bytes / self.row.devices

    @property
    def closed_form(self) -> Estimate | None:
        """What the scaling model says, from the rates that were known before the first pass."""
        turn = self.turns[0]
        if turn.machine is None or turn.load is None:
            return None
        devices = self.row.devices
        spread = Spread(tensor=devices, devices_per_host=devices, batch=self.sequences)
        return estimate(turn.load, spread, turn.machine)

    def to_json(self) -> dict[str, Any]:
        """As JSON, with what follows from the samples."""
        first, closed = self.turns[0], self.closed_form
        model = first.load and {
            "family": first.load.config.family,
            "layer_bytes": first.load.layer_bytes,
            "head_bytes": first.load.head_bytes,
        }
        return {
            "devices": self.row.devices,
            "store": self.row.store,
            "rate": self.row.rate,
            "predicted": None if first.prediction is None else asdict(first.prediction),
            "predicted_tokens_per_second": self.predicted,
            "closed_form": None if closed is None else asdict(closed),
            "load": model,
            "machine": None if first.machine is None else asdict(first.machine),
            "passes": self.passes.to_json(),
            "tokens_per_second": self.tokens_per_second,
            "read_bytes_per_device": self.read_bytes_per_device,
            "stages": [asdict(turn.stages) for turn in self.turns],
            "load_averages": [turn.load_average for turn in self.turns],
        }


@dataclass(frozen=True)
class ScalingRecord:
    """All rows, with what they were measured on. begun: when."""

    settings: ScalingSettings
    begun: str
    rows: tuple[ScalingRow, ...]
    environment: Environment

    def on(self, *, slowed: bool) -> list[ScalingRow]:
        """The rows of one store, by devices."""
        return [row for row in self.rows if (row.row.rate is not None) == slowed]

    def to_json(self) -> dict[str, Any]:
        """As JSON; every sample is kept."""
        return {
            "benchmark": "scaling",
            "settings": asdict(self.settings),
            "begun": self.begun,
            "rows": [row.to_json() for row in self.rows],
        } | asdict(self.environment)


def measure_scaling(
    work_directory: Path, *, settings: ScalingSettings, report: Callable[[str], None] = lambda what: None
) -> ScalingRecord:
    """Makes the model unless it is in `work_directory`, and measures. report: called with what is being done.

    Raises OptionError for a workload that there is not, UnsupportedError elsewhere than on Linux.
    """
    check_page_cache()
    path = _checkpoint(work_directory, settings, report)
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [Row(number, rate) for rate in (settings.rate, None) for number in settings.devices]
    turns: dict[Row, list[Turn]] = {row: [] for row in rows}
    for _, number in itertools.product(range(settings.rounds), settings.devices):
        fill(files_below(path))
        with process_with(number) as process:
            for row in (row for row in rows if row.devices == number):
                report(f"{number} device(s), {row.store}")
                turns[row].append(run(process, _turn, path, row, settings))
    measured = (ScalingRow(row, settings.sequences, tuple(kept)) for row, kept in turns.items())
    return ScalingRecord(settings, begun, tuple(measured), environment())


def _turn(path: Path, row: Row, settings: ScalingSettings) -> Turn:
    return take_turn(path, row, sequences=settings.sequences, passes=settings.passes)


def _checkpoint(work_directory: Path, settings: ScalingSettings, report: Callable[[str], None]) -> Path:
    """The workload, cut into as many parts as there are devices at most."""
    shards, name = max(settings.devices), settings.model
    workload(name, settings.layers)
    home = work_directory / f"{name}-{settings.layers}-layers-{settings.sparsity:g}"
    path = home / f"{shards}-shards.endor"
    if path.exists():
        return path
    report(f"making and converting {name}")
    home.mkdir(parents=True, exist_ok=True)

    def converted(made: Path) -> None:
        source = write_workload(home / "source", name, layers=settings.layers)
        convert(source, made, prune="magnitude", sparsity=settings.sparsity, shards=shards)
        shutil.rmtree(source)

    make_whole(path, converted)
    write_back(files_below(path))
    return path
