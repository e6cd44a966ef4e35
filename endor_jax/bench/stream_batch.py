"""Tokens per second of many sequences that share each pass over weights on disk, by `complete_batch`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endor_jax.bench.stream_passes import CONTEXT, TOKEN, geometry_of, plan_in_tier
from endor_jax.errors import InvalidInputError
from endor_jax.generate.model import load
from endor_jax.store.reader import Checkpoint

UNCOUNTED = 2
"""Passes that no rate counts: that of the prompts, and the one that compiles."""


@dataclass(frozen=True)
class BatchPoint:
    """Some sequences under way at once. read_bytes: per pass. rates: tokens per second, a sample a turn."""

    sequences: int
    read_bytes: int
    rates: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """Median of the samples."""
        return statistics.median(self.rates)

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the median."""
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


def measure_batch(
    path: Path, *, reader: str, sequences: Sequence[int], passes: int, rounds: int
) -> tuple[BatchPoint, ...]:
    """Turns of every number of sequences. Raises what `load` raises."""
    rates: dict[int, list[float]] = {number: [] for number in sequences}
    read_bytes: dict[int, int] = {}
    for _ in range(rounds):
        for number, kept in rates.items():
            read_bytes[number], rate = _turn(path, reader, number, passes)
            kept.append(rate)
    return tuple(BatchPoint(number, read_bytes[number], tuple(kept)) for number, kept in rates.items())


def _turn(path: Path, reader: str, sequences: int, passes: int) -> tuple[int, float]:
    """Bytes read per pass, tokens per second."""
    with Checkpoint(path, reader=reader) as checkpoint:
        plan = plan_in_tier(checkpoint, "disk", sequences=sequences)
        context = min(CONTEXT, geometry_of(checkpoint, 1).config.max_positions)
    with load(
        path,
        device_memory=plan.device_bytes,
        host_memory=plan.host_bytes,
        context=context,
        batch=sequences,
        reader=reader,
    ) as model:
        for _ in model.complete_batch([[TOKEN]] * sequences, max_tokens=passes + UNCOUNTED):
            pass
        assert model.statistics is not None
        rate = model.statistics.generation_tokens_per_second
        read = model.plan.read_bytes_per_pass
    if rate is None:
        raise InvalidInputError(
            f"checkpoint {path}",
            got="an end of text at once",
            expected=f"{passes + UNCOUNTED} tokens",
            fix="take a model that goes on",
        )
    return read, rate
