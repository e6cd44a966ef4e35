"""The streaming loop beside its limits: on stores of several rates, on the disk there is, on the page cache.

Per store: the loop, each of its stages alone, the same without overlap, and the weights streamed dense. Then
tokens per second over budgets, as predicted before anything ran and as achieved, and over sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from endor_jax.bench.environment import Environment, environment
from endor_jax.bench.offload_limits import link_bytes_per_second
from endor_jax.bench.page_cache import check_page_cache, files_below, fill
from endor_jax.bench.stream_batch import BatchPoint, measure_batch
from endor_jax.bench.stream_cases import MAPPED, Order, Store, StreamCase, measure_case, measure_order
from endor_jax.bench.stream_models import StreamModels, stream_models
from endor_jax.bench.stream_passes import moving, plan_in_tier, time_passes
from endor_jax.bench.stream_sweep import (
    Predicted,
    SweepPoint,
    predict_sweep,
    run_sweep,
    worst_error,
    worst_step,
)
from endor_jax.errors import OptionError
from endor_jax.generate.placement import pass_records
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.transfer import shares_memory

READERS = ("direct", "preadv", "tensorstore")
CACHED = Store("preadv"), Store(MAPPED)
RATES = (0.5e9, 1e9, 2e9, 4e9)
SEQUENCES = (1, 8, 32)


@dataclass(frozen=True)
class StreamSettings:
    """What is measured. model: a checkpoint, or the name of a workload, which is pruned to `sparsity`.

    reader: of the disk itself. rates: of slowed stores, bytes per second. sequences: that a pass serves;
    slowed stores and the page cache are measured with the fewest and the most. passes, rounds: of a turn, of
    turns. budgets: points of the sweep, 0 for none.
    """

    model: str = "llama-1b"
    sparsity: float = 0.5
    reader: str = "direct"
    rates: tuple[float, ...] = RATES
    sequences: tuple[int, ...] = SEQUENCES
    passes: int = 4
    rounds: int = 3
    budgets: int = 7

    def __post_init__(self) -> None:
        if self.reader not in READERS:
            raise OptionError("reader", got=self.reader, expected=" or ".join(READERS), fix="choose one")
        if not self.sequences or min(self.sequences) < 1:
            raise OptionError(
                "sequences", got=str(self.sequences), expected="numbers from 1 on", fix="say 1, 8, 32"
            )
        if self.budgets == 1 or self.budgets < 0:
            raise OptionError(
                "budgets", got=str(self.budgets), expected="2 or more, or 0 for none", fix="say 7"
            )


@dataclass(frozen=True)
class Link:
    """From memory to a device. bytes_per_second: of passes that only transfer, from the host tier.
    pinned_bytes_per_second: of copies from pinned memory, in the same run."""

    bytes_per_second: float
    pinned_bytes_per_second: float


@dataclass(frozen=True)
class StreamRecord:
    """All that was measured, with what it was measured on. stored_bytes, dense_bytes: read per pass.

    predicted_at: when the predictions were made, all before the first pass. link: None where the device has
    no memory of its own.
    """

    settings: StreamSettings
    device: str
    predicted_at: str
    cases: tuple[StreamCase, ...]
    order: Order
    sweep: tuple[SweepPoint, ...]
    batch: tuple[BatchPoint, ...]
    link: Link | None
    environment: Environment

    @property
    def batch_gain(self) -> float:
        """Tokens per second of the most sequences over those of the fewest."""
        return self.batch[-1].tokens_per_second / self.batch[0].tokens_per_second

    def to_json(self) -> dict[str, Any]:
        """As JSON; every sample is kept."""
        return {
            "benchmark": "stream",
            "settings": asdict(self.settings),
            "device": self.device,
            "predicted_at": self.predicted_at,
            "cases": [case.to_json() for case in self.cases],
            "order": asdict(self.order),
            "sweep": [point.to_json() for point in self.sweep],
            "worst_step": worst_step(self.sweep),
            "worst_prediction_error": worst_error(self.sweep),
            "batch": [point.to_json() for point in self.batch],
            "batch_gain": self.batch_gain,
            "link": None if self.link is None else asdict(self.link),
        } | asdict(self.environment)


def measure_stream(
    work_directory: Path,
    *,
    settings: StreamSettings,
    report: Callable[[str], None] = lambda what: None,
    predicted: Callable[[dict[str, Any]], None] = lambda values: None,
) -> StreamRecord:
    """Makes what is not there in `work_directory` and measures. report: called with what is being done.

    predicted: called with the predictions, as JSON, before the first pass. Raises OptionError for a model
    there is not, UnsupportedError elsewhere than on Linux or for a reader that the file system refuses.
    """
    check_page_cache()
    made = stream_models(settings.model, work_directory, sparsity=settings.sparsity, report=report)
    with Checkpoint(made.checkpoint, reader=settings.reader) as checkpoint:
        foretold: tuple[Predicted, ...] = ()
        if settings.budgets:
            report("predicting")
            foretold = predict_sweep(checkpoint, budgets=settings.budgets)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        predicted({"predicted_at": when, "sweep": [each.to_json() for each in foretold]})
        disk = Store(settings.reader)
        report("order of transfers and steps")
        order = measure_order(disk, made.checkpoint, passes=settings.passes)
        cases = _cases(made, settings, report)
        report("budgets")
        sweep = run_sweep(checkpoint, foretold, passes=settings.passes, rounds=settings.rounds)
        report("batches")
        batch = measure_batch(
            made.checkpoint,
            reader=settings.reader,
            sequences=sorted(settings.sequences),
            passes=settings.passes,
            rounds=settings.rounds,
        )
        link = _link(checkpoint, settings)
    device = default_device().platform
    return StreamRecord(settings, device, when, cases, order, sweep, batch, link, environment())


def _cases(
    made: StreamModels, settings: StreamSettings, report: Callable[[str], None]
) -> tuple[StreamCase, ...]:
    """The disk itself with all numbers of sequences, the others with the fewest and the most: the page cache,
    read and mapped (for a device with memory of its own, host memory instead), and slowed stores."""
    sequences = sorted(set(settings.sequences))
    ends = sorted({sequences[0], sequences[-1]})
    shares = shares_memory(default_device())
    stores = [Store(settings.reader), CACHED[0], CACHED[1] if shares else Store(settings.reader, tier="host")]
    stores += [Store(settings.reader, rate) for rate in settings.rates]
    cases = []
    for store in dict.fromkeys(stores):
        if store in CACHED:
            fill(files_below(made.checkpoint))
        for number in sequences if store == stores[0] else ends:
            report(f"{store.name}, {number} sequence(s)")
            read = store.reader != MAPPED and store.tier == "disk" and store.bytes_per_second is None
            dense = made.dense if read and number == sequences[0] else None
            cases.append(
                measure_case(
                    store,
                    made.checkpoint,
                    sequences=number,
                    passes=settings.passes,
                    rounds=settings.rounds,
                    dense=dense,
                )
            )
    return tuple(cases)


def _link(checkpoint: Checkpoint, settings: StreamSettings) -> Link | None:
    """Passes that only transfer, beside what copying from pinned memory gives."""
    if shares_memory(default_device()):
        return None
    plan = plan_in_tier(checkpoint, "host")
    with moving(checkpoint, pass_records(checkpoint.manifest), plan) as one_pass:
        passes = time_passes(one_pass, settings.passes)
    return Link(plan.transferred_bytes_per_pass / passes.median_seconds, link_bytes_per_second())
