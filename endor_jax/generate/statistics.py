"""What a generation took: counted bytes, measured seconds, peak memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from endor_jax.memory import peak_host_bytes
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.prediction import Stage
from endor_jax.streaming.timeline import Stages
from endor_jax.streaming.transfer import Device


@dataclass(frozen=True)
class Achieved:
    """What a pass took, to be set beside a prediction; a mean over passes that compiled nothing.

    seconds: of a pass in all. read_seconds: in which at least one read was under way, waited for or not.
    read_wait_seconds, transfer_wait_seconds: in which the pass waited for bytes. compute_seconds: the rest,
    which computing took at least; what it did while bytes were waited for is hidden in that.
    """

    tokens_per_second: float
    seconds: float
    read_seconds: float
    read_wait_seconds: float
    transfer_wait_seconds: float
    compute_seconds: float

    @property
    def binding(self) -> Stage:
        """What most of the time went to."""
        waits: dict[Stage, float] = {
            "compute": self.compute_seconds,
            "transfer": self.transfer_wait_seconds,
            "read": self.read_wait_seconds,
        }
        return max(waits, key=lambda stage: waits[stage])


@dataclass(frozen=True)
class Statistics:
    """Figures of one generation, or of a batch of them.

    cached_tokens: of the prompt, those that a session held already. prompt_seconds: of the passes with a
    prompt in them. timed_tokens, generation_seconds: tokens and seconds of the other passes, without the
    first, which compiles. stages: what the stages did in those passes. bytes_read and bytes_transferred are
    those of all passes, counted where they happen. peak_host_bytes is the peak resident memory of the
    process; peak_device_bytes is what JAX's allocator reports, None on CPU, where device memory is host
    memory.
    """

    prompt_tokens: int
    cached_tokens: int
    prompt_seconds: float
    generated_tokens: int
    timed_tokens: int
    generation_seconds: float
    stages: Stages
    bytes_read: int
    bytes_transferred: int
    peak_host_bytes: int
    peak_device_bytes: int | None

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt tokens that were not cached, over the time of their passes."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generation_tokens_per_second(self) -> float | None:
        """Tokens over the time of their passes; None where fewer than three passes leave none to measure."""
        return self.timed_tokens / self.generation_seconds if self.generation_seconds else None

    @property
    def achieved(self) -> Achieved | None:
        """What its passes took; None where fewer than three leave none to measure."""
        stages, rate = self.stages, self.generation_tokens_per_second
        if rate is None or stages.passes == 0:
            return None
        seconds = self.generation_seconds / stages.passes
        read_wait = stages.read_wait_seconds / stages.passes
        transfer_wait = stages.transfer_wait_seconds / stages.passes
        return Achieved(
            tokens_per_second=rate,
            seconds=seconds,
            read_seconds=stages.read_busy_seconds / stages.passes,
            read_wait_seconds=read_wait,
            transfer_wait_seconds=transfer_wait,
            compute_seconds=max(seconds - read_wait - transfer_wait, 0.0),
        )


class Meter:
    """Adds up the passes of a generation; `statistics` at any moment.

    executors: of the stages of a pipeline that are in this process; then passes are its ticks. device: one
    whose allocator is asked. compiling: passes without a prompt of which the times do not count.
    """

    def __init__(self, executors: Sequence[Executor], device: Device, *, compiling: int = 1):
        self._executors, self._device = tuple(executors), device
        self._before = self._moved
        self._prompt = self._cached = self._generated = self._timed = 0
        self._prompt_seconds = self._seconds = 0.0
        self._compiling = compiling
        self._stages = Stages()
        self._latest = self._now

    @property
    def _moved(self) -> tuple[int, int]:
        """Bytes read and transferred by all executors."""
        return (
            sum(executor.bytes_read for executor in self._executors),
            sum(executor.bytes_transferred for executor in self._executors),
        )

    @property
    def _now(self) -> Stages:
        """What the stages of all executors have done so far."""
        return functools.reduce(_sum, (executor.stages for executor in self._executors))

    def prompt_pass(self, prompt: int, tokens: int, seconds: float, *, cached: int = 0) -> None:
        """A pass with prompts of `prompt` tokens, of which `cached` were there; it gave `tokens` new ones."""
        self._prompt += prompt
        self._cached += cached
        self._prompt_seconds += seconds
        self._generated += tokens
        self._latest = self._now

    def token_pass(self, tokens: int, seconds: float) -> None:
        """A pass in which every sequence went on by one token."""
        self._generated += tokens
        before, self._latest = self._latest, self._now
        if self._compiling:
            self._compiling -= 1
            return
        self._timed += tokens
        self._seconds += seconds
        self._stages = _sum(self._stages, self._latest - before)

    @property
    def statistics(self) -> Statistics:
        """Figures up to now."""
        return Statistics(
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            prompt_seconds=self._prompt_seconds,
            generated_tokens=self._generated,
            timed_tokens=self._timed,
            generation_seconds=self._seconds,
            stages=self._stages,
            bytes_read=self._moved[0] - self._before[0],
            bytes_transferred=self._moved[1] - self._before[1],
            peak_host_bytes=peak_host_bytes(),
            peak_device_bytes=peak_device_bytes(self._device),
        )


def _sum(one: Stages, other: Stages) -> Stages:
    return Stages(*(a + b for a, b in zip(astuple(one), astuple(other), strict=True)))


def peak_device_bytes(device: Device) -> int | None:
    """Peak bytes that JAX's allocator gave out on a device; None where it does not count (CPU)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
