"""A number of threads, kept to honestly: a process that may run on that many CPUs only.

XLA, torch and NumPy all size their thread pools by the CPUs that a process may run on when it starts; so a
measurement with one thread runs in a process of its own that was bound to one CPU from its first instruction.
What it measures is then what a user has on such a machine, dispatch included.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import jax

from endor_jax.bench.failures import outcome, result
from endor_jax.errors import OptionError, UnsupportedError
from endor_jax.processors import usable_cpus


def check_threads(threads: int) -> None:
    """Raises OptionError unless there are so many CPUs, UnsupportedError if a process cannot be bound."""
    cpus = len(usable_cpus())
    if not 1 <= threads <= cpus:
        raise OptionError(
            "threads", got=str(threads), expected=f"1 to {cpus}, the CPUs there are", fix="choose fewer"
        )
    if threads < cpus and not hasattr(os, "sched_setaffinity"):
        raise UnsupportedError(
            "threads",
            got=f"{threads} of {cpus}",
            expected=f"{cpus}, because this system binds no process to chosen CPUs",
            fix=f"pass --threads {cpus}",
        )


@contextmanager
def process_of(threads: int) -> Iterator[ProcessPoolExecutor]:
    """A fresh process on the first `threads` CPUs with JAX on its CPU backend; jobs run one by one."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_on_cpu) as process:
        with _bound(usable_cpus()[:threads]):
            process.submit(usable_cpus).result()
        yield process


@contextmanager
def process_with(devices: int) -> Iterator[ProcessPoolExecutor]:
    """A fresh process in which JAX makes so many devices of the CPU; jobs run one by one."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_on_cpu, initargs=(devices,)) as process:
        yield process


Result = TypeVar("Result")


def run(process: ProcessPoolExecutor, job: Callable[..., Result], *arguments: Any) -> Result:
    """What `job` returns in that process. Raises what it raises."""
    return result(process.submit(outcome, job, *arguments).result())


@contextmanager
def _bound(cpus: tuple[int, ...]) -> Iterator[None]:
    """This thread, and so what it starts, on these CPUs only."""
    before = usable_cpus()
    if cpus == before:
        yield
        return
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _on_cpu(devices: int = 1) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
