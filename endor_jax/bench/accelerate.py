"""Seconds per token when the weights do not fit: ours beside Hugging Face Accelerate, in one run.

A workload is pruned by us and converted, and exported dense for the peer: same weights, prompt, number of new
tokens, threads. Every contender has a process of its own that holds its model, and they take turns, a
generation each. Conditions of disk offload: `warm`, the page cache holds all files; `cold`, a contender's
files are dropped from it before every token. How much of them was cached is counted every time. The limit is
what a contender moves per token, at the rate of where it comes from, measured in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from endor_jax.bench.contender_process import UNCOUNTED, Contender, ContenderProcess, Turn
from endor_jax.bench.environment import Environment, environment
from endor_jax.bench.offload_contenders import TIERS, Files, files_for, ours, peers, prepare
from endor_jax.bench.offload_limits import Rate, RateOf, disk_rate, moving_rate
from endor_jax.bench.page_cache import check_page_cache, fill
from endor_jax.bench.peers import need
from endor_jax.bench.race import quartiles
from endor_jax.bench.workloads import workload
from endor_jax.errors import EndorError, OptionError
from endor_jax.processors import usable_cpus

PROMPT = tuple(range(100, 116))
"""Ids: the weights are random, so no text would mean anything."""


@dataclass(frozen=True)
class OffloadSettings:
    """What is measured. model, layers: a workload. offload: where to, "disk" or "cpu". tokens: generated in a
    turn. rounds: turns of each contender in each condition."""

    model: str = "llama-1b"
    layers: int | None = None
    offload: str = "disk"
    sparsity: float = 0.5
    tokens: int = 10
    rounds: int = 3

    def __post_init__(self) -> None:
        if self.offload not in TIERS:
            raise OptionError("offload", got=self.offload, expected=" or ".join(TIERS), fix="choose one")
        if self.tokens <= UNCOUNTED:
            raise OptionError(
                "tokens",
                got=str(self.tokens),
                expected=f"more than {UNCOUNTED}, which are not counted",
                fix="ask for more",
            )


@dataclass(frozen=True)
class OffloadTiming:
    """A contender's turns in one condition. streamed_bytes: of weights, moved for each token."""

    contender: str
    streamed_bytes: int
    turns: tuple[Turn, ...]

    @property
    def token_seconds(self) -> tuple[float, ...]:
        """All samples."""
        return tuple(seconds for turn in self.turns for seconds in turn.token_seconds)

    @property
    def median_seconds(self) -> float:
        """Per token."""
        return statistics.median(self.token_seconds)

    @property
    def quartile_seconds(self) -> tuple[float, float]:
        """Between these lies the middle half of the samples."""
        return quartiles(self.token_seconds)

    @property
    def cached_share(self) -> float:
        """Of its files' pages that were in the page cache, median of the turns."""
        return statistics.median(turn.cached_share for turn in self.turns)

    @property
    def peak_bytes(self) -> int:
        """Resident memory of its process, at most, libraries included."""
        return max(turn.peak_bytes for turn in self.turns)


@dataclass(frozen=True)
class OffloadCase:
    """One condition. rate: of where the weights come from. timings: ours by default comes first."""

    condition: str
    rate: Rate
    timings: tuple[OffloadTiming, ...]

    def limit_seconds(self, timing: OffloadTiming) -> float:
        """Least seconds per token: what it moves, at the rate."""
        return timing.streamed_bytes / self.rate.bytes_per_second

    def times(self, timing: OffloadTiming, peer: OffloadTiming) -> float:
        """How many times as fast as a peer."""
        return peer.median_seconds / timing.median_seconds

    def same_tokens(self, timing: OffloadTiming) -> int:
        """How many tokens are those of ours, before the first that is not."""
        pairs = zip(self.timings[0].turns[0].token_ids, timing.turns[0].token_ids, strict=True)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(timing.turns[0].token_ids))

    @property
    def peers(self) -> tuple[OffloadTiming, ...]:
        """Those that are not ours."""
        return tuple(timing for timing in self.timings if not timing.contender.startswith("ours"))

    def to_json(self) -> dict[str, Any]:
        """As JSON, with all that follows from the samples."""
        timings = [
            asdict(timing)
            | {
                "median_seconds": timing.median_seconds,
                "quartile_seconds": timing.quartile_seconds,
                "limit_seconds": self.limit_seconds(timing),
                "cached_share": timing.cached_share,
                "peak_bytes": timing.peak_bytes,
                "same_tokens_as_ours": self.same_tokens(timing),
                "times_as_fast_as": {peer.contender: self.times(timing, peer) for peer in self.peers},
            }
            for timing in self.timings
        ]
        rate = asdict(self.rate) | {"bytes_per_second": self.rate.bytes_per_second}
        return {"condition": self.condition, "rate": rate, "timings": timings}


@dataclass(frozen=True)
class OffloadRecord:
    """All conditions, with what they were measured on. layers: of the model. device: "cpu" or "cuda"."""

    settings: OffloadSettings
    layers: int
    prompt_tokens: int
    threads: int
    device: str
    cases: tuple[OffloadCase, ...]
    environment: Environment

    def to_json(self) -> dict[str, Any]:
        """As JSON; every sample is kept."""
        values = {"benchmark": "accelerate"} | asdict(self)
        values["cases"] = [case.to_json() for case in self.cases]
        del values["environment"]
        return values | asdict(self.environment)


def measure_accelerate(
    work_directory: Path,
    *,
    settings: OffloadSettings,
    report: Callable[[str], None] = lambda what: None,
) -> OffloadRecord:
    """Makes the model in `work_directory` unless it is there, opens all contenders, measures.

    Raises MissingDependencyError without torch, transformers and accelerate, UnsupportedError elsewhere than
    on Linux, OptionError for a workload there is not, EndorError if a contender fails.
    """
    need("torch", "transformers", "accelerate")
    check_page_cache()
    layers = workload(settings.model, settings.layers).config["num_hidden_layers"]
    sparsity = settings.sparsity
    files = files_for(work_directory, settings.model, layers=layers, sparsity=sparsity)
    prepare(files, settings.model, layers=layers, sparsity=sparsity, report=report)
    threads = len(usable_cpus())
    with ExitStack() as stack:
        processes = _opened(files, settings, stack=stack, threads=threads, report=report)
        device = processes[0].platform
        cases = _cases(files, processes, settings=settings, device=device, report=report)
    return OffloadRecord(settings, layers, len(PROMPT), threads, device, cases, environment())


def _opened(
    files: Files,
    settings: OffloadSettings,
    *,
    stack: ExitStack,
    threads: int,
    report: Callable[[str], None],
) -> list[ContenderProcess]:
    """All contenders, each with one turn that is not counted: it compiles, and makes threads and memory."""

    def opened(contender: Contender) -> ContenderProcess:
        report(f"opening {contender.name}")
        process = stack.enter_context(ContenderProcess(contender))
        process.turn(PROMPT, settings.tokens, cold=False)
        return process

    context = len(PROMPT) + settings.tokens
    processes = [opened(contender) for contender in ours(files, offload=settings.offload, context=context)]
    others = peers(files, offload=settings.offload, device=processes[0].platform, threads=threads)
    return processes + [opened(contender) for contender in others]


def _cases(
    files: Files,
    processes: Sequence[ContenderProcess],
    *,
    settings: OffloadSettings,
    device: str,
    report: Callable[[str], None],
) -> tuple[OffloadCase, ...]:
    """Every condition, one after the other: dropping files would spoil those that are to be warm."""
    with moving_rate(device) as moving:
        rates = {"warm": moving, "cold": disk_rate(files.checkpoint)}
        if settings.offload == "cpu":
            rates = {"memory": moving}
        return tuple(
            _case(condition, processes, rate=rate, settings=settings, report=report)
            for condition, rate in rates.items()
        )


def _case(
    condition: str,
    processes: Sequence[ContenderProcess],
    *,
    rate: RateOf,
    settings: OffloadSettings,
    report: Callable[[str], None],
) -> OffloadCase:
    """Turns in rounds; the rate is measured before each."""
    turns: list[list[Turn]] = [[] for _ in processes]
    rates = []
    for number in range(1, settings.rounds + 1):
        report(f"{condition}, round {number} of {settings.rounds}")
        rates.append(rate.measure())
        for process, kept in zip(processes, turns, strict=True):
            if condition == "warm":
                fill(process.contender.files)
            kept.append(process.turn(PROMPT, settings.tokens, cold=condition == "cold"))
            check_same(process.contender.name, kept)
    timings = zip(processes, turns, strict=True)
    return OffloadCase(
        condition,
        Rate(rate.source, tuple(rates)),
        tuple(OffloadTiming(p.contender.name, p.streamed_bytes, tuple(kept)) for p, kept in timings),
    )


def check_same(name: str, turns: Sequence[Turn]) -> None:
    """Raises EndorError if the latest turn of a contender gave other tokens than the first."""
    if turns[-1].token_ids != turns[0].token_ids:
        raise EndorError(
            f"accelerate, {name}",
            got="other tokens than the first time",
            expected="the same from a greedy generation",
            fix="run it again; report it if it stays so",
        )
