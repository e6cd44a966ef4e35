"""What a generation took: counted bytes, measured seconds, peak memory."""

from __future__ import annotations

from dataclasses import dataclass

from endor_jax.memory import peak_host_bytes
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.transfer import Device


@dataclass(frozen=True)
class Statistics:
    """Figures of one generation, or of a batch of them.

    cached_tokens: of the prompt, those that a session held already. prompt_seconds: of the passes with a
    prompt in them. timed_tokens, generation_seconds: tokens and seconds of the other passes, without the
    first, which compiles. bytes_read and bytes_transferred are those of its passes, counted where they
    happen. peak_host_bytes is the peak resident memory of the process; peak_device_bytes is what JAX's
    allocator reports, None on CPU, where device memory is host memory.
    """

    prompt_tokens: int
    cached_tokens: int
    prompt_seconds: float
    generated_tokens: int
    timed_tokens: int
    generation_seconds: float
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


class Meter:
    """Adds up the passes of a generation; `statistics` at any moment."""

    def __init__(self, executor: Executor, device: Device):
        self._executor, self._device = executor, device
        self._before = executor.bytes_read, executor.bytes_transferred
        self._prompt = self._cached = self._generated = self._timed = 0
        self._prompt_seconds = self._seconds = 0.0
        self._compiled = False

    def prompt_pass(self, prompt: int, tokens: int, seconds: float, *, cached: int = 0) -> None:
        """A pass with prompts of `prompt` tokens, of which `cached` were there; it gave `tokens` new ones."""
        self._prompt += prompt
        self._cached += cached
        self._prompt_seconds += seconds
        self._generated += tokens

    def token_pass(self, tokens: int, seconds: float) -> None:
        """A pass in which every sequence went on by one token."""
        self._generated += tokens
        if self._compiled:
            self._timed += tokens
            self._seconds += seconds
        self._compiled = True

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
            bytes_read=self._executor.bytes_read - self._before[0],
            bytes_transferred=self._executor.bytes_transferred - self._before[1],
            peak_host_bytes=peak_host_bytes(),
            peak_device_bytes=peak_device_bytes(self._device),
        )


def peak_device_bytes(device: Device) -> int | None:
    """Peak bytes that JAX's allocator gave out on a device; None where it does not count (CPU)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
