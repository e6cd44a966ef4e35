"""Tokens per second from nothing resident to everything, as predicted beforehand and as achieved."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from endor_jax.bench.stream_passes import Passes, computing, geometry_of, time_passes
from endor_jax.generate.costs import costs_of
from endor_jax.generate.placement import plan_model
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.devices import one_device
from endor_jax.streaming.plan import Plan
from endor_jax.streaming.prediction import Prediction, predict
from endor_jax.streaming.transfer import shares_memory


@dataclass(frozen=True)
class Predicted:
    """A plan for a budget, and what is predicted of it; None of a checkpoint too small to be predicted."""

    plan: Plan
    prediction: Prediction | None

    @property
    def resident_bytes(self) -> int:
        """Of records that are not read in every pass."""
        return self.plan.resident_bytes + self.plan.host_kept_bytes

    def to_json(self) -> dict[str, Any]:
        """As JSON, without the list of records."""
        return {
            "device_budget_bytes": self.plan.device_budget_bytes,
            "resident_bytes": self.resident_bytes,
            "read_bytes": self.plan.read_bytes_per_pass,
            "prediction": None
            if self.prediction is None
            else asdict(self.prediction) | {"tokens_per_second": self.prediction.tokens_per_second},
        }


@dataclass(frozen=True)
class SweepPoint:
    """A budget: what was predicted, and the passes that were made."""

    predicted: Predicted
    passes: Passes

    @property
    def tokens_per_second(self) -> float:
        """As achieved."""
        return 1 / self.passes.median_seconds

    @property
    def error(self) -> float | None:
        """Of the prediction: predicted over achieved, less one."""
        prediction = self.predicted.prediction
        return None if prediction is None else prediction.tokens_per_second / self.tokens_per_second - 1

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the error."""
        achieved = self.passes.to_json() | {"tokens_per_second": self.tokens_per_second}
        return self.predicted.to_json() | {"achieved": achieved, "prediction_error": self.error}


def predict_sweep(checkpoint: Checkpoint, *, budgets: int) -> tuple[Predicted, ...]:
    """So many device budgets, from none of the records resident to all; nothing of the model is run.

    Rates are those of this machine; what is not remembered is measured: on random data, but for the disk.
    """
    device = default_device()
    shares = shares_memory(device)
    manifest, shape = checkpoint.manifest, geometry_of(checkpoint, 1)
    nothing = plan_model(
        manifest, shape, device_budget_bytes=2**62, host_budget_bytes=2**62, shares_memory=shares
    )
    everything = sum(demand.buffer_bytes for demand in nothing.demands)
    least = nothing.device_bytes - nothing.resident_bytes
    choice = checkpoint.reader_choice
    streaming = replace(all_read(nothing), reads=choice.reads)
    costs = costs_of(manifest, shape, choice=choice, devices=one_device(device))
    plans = (
        plan_model(
            manifest,
            shape,
            device_budget_bytes=least + streaming.stream_buffer_bytes + everything * i // (budgets - 1),
            host_budget_bytes=streaming.host_bytes,
            reads=choice.reads,
            shares_memory=shares,
        )
        for i in range(budgets)
    )
    return tuple(Predicted(plan, None if costs is None else predict(plan, costs)) for plan in plans)


def all_read(plan: Plan) -> Plan:
    """The same with every record on disk."""
    return replace(plan, tiers=("disk",) * len(plan.tiers))


def run_sweep(
    checkpoint: Checkpoint, predicted: Sequence[Predicted], *, passes: int, rounds: int
) -> tuple[SweepPoint, ...]:
    """All budgets in turn, `rounds` times."""
    turns: list[list[Passes]] = [[] for _ in predicted]
    for _ in range(rounds):
        for each, kept in zip(predicted, turns, strict=True):
            with computing(checkpoint, each.plan, sequences=1) as one_pass:
                kept.append(time_passes(one_pass, passes))
    return tuple(
        SweepPoint(each, sum(kept[1:], kept[0])) for each, kept in zip(predicted, turns, strict=True)
    )


def worst_step(points: Sequence[SweepPoint]) -> float:
    """The least that a budget achieves, as a share of what the smaller one before it does."""
    rates = [point.tokens_per_second for point in points]
    return min((after / before for before, after in itertools.pairwise(rates)), default=1.0)


def worst_error(points: Sequence[SweepPoint]) -> float | None:
    """Of all predictions, the largest error in size; None without any."""
    return max((abs(point.error) for point in points if point.error is not None), default=None)
