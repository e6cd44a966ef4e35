"""Tokens per second of a real model: ours from compressed weights, torch transformers from dense ones.

One checkpoint is converted, and exported for torch: all contenders have the same pruned weights, the same
prompt, the same number of tokens, all threads, batch 1, greedy, with a cache of keys and values. They take
turns, a generation each; the first of each compiles and is not counted. Ours is resident.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endor_jax.bench.environment import Environment, environment
from endor_jax.bench.peers import need, transformers_tokens
from endor_jax.conversion.api import convert
from endor_jax.conversion.export import export
from endor_jax.errors import EndorError, InvalidInputError
from endor_jax.generate.model import Model, load
from endor_jax.processors import usable_cpus

OURS = "ours"
PEERS = ("bfloat16", "float32")
"""Dtypes that torch transformers runs in."""

Generate = Callable[[Sequence[int], int], Iterator[int]]
"""(prompt ids, tokens) -> greedy tokens as they come."""


@dataclass(frozen=True)
class DecodeSettings:
    """What is measured. tokens: generated each time, 2 at least. rounds: generations per contender. context:
    positions that our cache has, or what the model knows if that is less; the peer's grows as it goes."""

    sparsity: float = 0.5
    values: str = "packed"
    dtype: str = "bfloat16"
    prompt: str = "Once upon a time"
    tokens: int = 64
    rounds: int = 5
    context: int = 512


@dataclass(frozen=True)
class Generation:
    """One generation. prompt_seconds: up to the first token. token_seconds: of each of the others."""

    prompt_seconds: float
    token_seconds: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """Without the first, which waits for the prompt."""
        return len(self.token_seconds) / sum(self.token_seconds)


@dataclass(frozen=True)
class DecodeTiming:
    """A contender's generations, and the tokens, which are the same every time."""

    contender: str
    first_seconds: float
    token_ids: tuple[int, ...]
    generations: tuple[Generation, ...]

    @property
    def tokens_per_second(self) -> float:
        """Median of the generations."""
        return statistics.median(each.tokens_per_second for each in self.generations)


@dataclass(frozen=True)
class DecodeRecord:
    """All generations, with what they were measured on.

    model: name of the file or directory. resident_bytes: of its records.
    """

    model: str
    settings: DecodeSettings
    prompt_tokens: int
    threads: int
    resident_bytes: int
    timings: tuple[DecodeTiming, ...]
    environment: Environment

    @property
    def ours(self) -> DecodeTiming:
        """The first of all."""
        return self.timings[0]

    def same_tokens(self, timing: DecodeTiming) -> int:
        """How many tokens are those of ours, before the first that is not."""
        pairs = enumerate(zip(self.ours.token_ids, timing.token_ids, strict=True))
        return next((index for index, (a, b) in pairs if a != b), len(timing.token_ids))

    @property
    def peer_ratio(self) -> float:
        """Tokens per second of ours over those of the fastest peer."""
        peers = self.timings[1:]
        return self.ours.tokens_per_second / max(timing.tokens_per_second for timing in peers)

    def to_json(self) -> dict[str, Any]:
        """As JSON, with rates and the ratio."""
        timings = [
            asdict(timing)
            | {"tokens_per_second": timing.tokens_per_second, "same_tokens_as_ours": self.same_tokens(timing)}
            for timing in self.timings
        ]
        values = {"benchmark": "decode"} | asdict(self) | {"timings": timings, "peer_ratio": self.peer_ratio}
        del values["environment"]
        return values | asdict(self.environment)


def measure_decode(
    source: Path,
    work_directory: Path,
    *,
    settings: DecodeSettings,
    report: Callable[[str], None] = lambda what: None,
) -> DecodeRecord:
    """Converts `source` (a Hugging Face directory or a GGUF file) in `work_directory`, exports it, generates.

    Raises MissingDependencyError without torch and transformers, what `convert` raises, InvalidInputError if
    the model does not fit in memory or ends its text before so many tokens.
    """
    need("torch", "transformers")
    checkpoint, dense = work_directory / "checkpoint.endor", work_directory / "dense"
    report(f"converting {source}")
    convert(
        source,
        checkpoint,
        prune="magnitude",
        sparsity=settings.sparsity,
        values=settings.values,
        dtype=settings.dtype,
    )
    export(checkpoint, dense)
    threads = len(usable_cpus())
    known = json.loads((checkpoint / "config.json").read_text())["max_position_embeddings"]
    with load(checkpoint, context=min(settings.context, known)) as model:
        _check_resident(model)
        prompt = model.encode(settings.prompt)
        ways: dict[str, Generate] = {OURS: lambda ids, tokens: _ours(model, ids, tokens)}
        for dtype in PEERS:
            ways[f"transformers {dtype}"] = transformers_tokens(dense, dtype, threads=threads)
        timings = race_generations(ways, prompt, settings=settings, report=report)
        resident = model.plan.resident_bytes
    return DecodeRecord(source.name, settings, len(prompt), threads, resident, timings, environment())


def race_generations(
    ways: dict[str, Generate],
    prompt: Sequence[int],
    *,
    settings: DecodeSettings,
    report: Callable[[str], None] = lambda what: None,
) -> tuple[DecodeTiming, ...]:
    """Every way in turn, `settings.rounds` times after one that is not counted."""
    first: dict[str, float] = {}
    ids: dict[str, tuple[int, ...]] = {}
    kept: dict[str, list[Generation]] = {name: [] for name in ways}
    for number in range(settings.rounds + 1):
        report(f"round {number} of {settings.rounds}" if number else "warm-up")
        for name, way in ways.items():
            start = time.perf_counter()
            tokens, generation = _timed(way(prompt, settings.tokens))
            if len(tokens) < settings.tokens:
                raise InvalidInputError(
                    f"decode, {name}",
                    got=f"an end of text after {len(tokens)} tokens",
                    expected=f"{settings.tokens}",
                    fix="give another prompt or fewer tokens",
                )
            if not number:
                first[name], ids[name] = time.perf_counter() - start, tokens
                continue
            if tokens != ids[name]:
                raise EndorError(
                    f"decode, {name}",
                    got="other tokens than the first time",
                    expected="the same from a greedy generation",
                    fix="run it again; report it if it stays so",
                )
            kept[name].append(generation)
    return tuple(DecodeTiming(name, first[name], ids[name], tuple(kept[name])) for name in ways)


def _timed(tokens: Iterator[int]) -> tuple[tuple[int, ...], Generation]:
    """All tokens, and when they came."""
    ids, stamps = [], [time.perf_counter()]
    for token in tokens:
        ids.append(token)
        stamps.append(time.perf_counter())
    gaps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    return tuple(ids), Generation(gaps[0], tuple(gaps[1:]))


def _ours(model: Model, prompt: Sequence[int], tokens: int) -> Iterator[int]:
    return (token.id for token in model.generate(prompt, max_tokens=tokens))


def _check_resident(model: Model) -> None:
    if streamed := model.plan.streamed:
        raise InvalidInputError(
            "decode",
            got=f"{len(streamed)} records that are streamed",
            expected="all resident",
            fix="free some memory, or choose a smaller model",
        )
