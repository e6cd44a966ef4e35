"""How fast a device copies its own memory: what expanding is measured against, read and written bytes.

Twice: as XLA copies an array (the driver's copy), and as a kernel of XLA's that reads every word and writes
it changed. The faster one counts: no one knows beforehand which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from endor_jax.bench.device_timing import DeviceTiming, Program, compiled

COPY_BYTES = 2**31
"""Copied at a time: more than any cache holds many times over."""
COPY = "copy"
KERNEL = "copy by a kernel"


def copy_programs() -> list[Program]:
    """Both ways, between the same two arrays."""
    words = COPY_BYTES // 4
    source = jax.random.bits(jax.random.key(0), (words,), jnp.uint32)
    held = jnp.zeros_like(source)
    ways: dict[str, Callable[[jax.Array], jax.Array]] = {COPY: jnp.copy, KERNEL: jnp.bitwise_not}
    target = [held]
    del held
    return [_program(name, way, source, target) for name, way in ways.items()]


def _program(
    name: str, way: Callable[[jax.Array], jax.Array], source: jax.Array, target: list[jax.Array]
) -> Program:
    run, seconds = compiled(lambda source, before: way(source), source, target[0], donate=1)

    def start() -> jax.Array:
        target[0] = run(source, target[0])
        return target[0]

    return Program(name, 2 * source.nbytes, 1, seconds, start)


def copy_bytes_per_second(timings: Iterable[DeviceTiming]) -> float:
    """Bytes read and written per second, of the faster copy among some timings."""
    return max(timing.bytes_per_second for timing in timings if copied(timing))


def copied(timing: DeviceTiming) -> bool:
    """Whether it is a copy's."""
    return timing.contender in (COPY, KERNEL)
