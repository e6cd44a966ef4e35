"""Expand, beside memcpy: dense bytes written per second by ours, by XLA and by NumPy.

Every expansion writes to memory that was written before, as memcpy does: the buffer of an earlier result is
donated. Without that, half of the time is the system's for fresh pages. NumPy has one thread only, so it is
measured only there.

limit: what the machine's memory allows. memcpy reads and writes a byte for every byte it copies; an expansion
that moved its bytes at that rate would take (stored + dense) / (2 × memcpy) seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from endor_jax import native
from endor_jax.arrays import array_bytes, dtype_from_name
from endor_jax.bench.bandwidth import MEMCPY, memory_contenders
from endor_jax.bench.environment import Environment, environment
from endor_jax.bench.matrices import (
    Shape,
    copies_beyond,
    pruned_weights,
    shape_name,
    sparse_copies,
    stored_bytes,
)
from endor_jax.bench.peers import numpy_expand
from endor_jax.bench.processes import check_threads, process_of, run
from endor_jax.bench.race import Contender, Timing, race
from endor_jax.format.encode import encode_array
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import parse_codec
from endor_jax.kernels.expand import cpu, xla
from endor_jax.processors import last_level_cache_bytes, usable_cpus

SHAPES: tuple[Shape, ...] = ((4096, 4096), (4096, 11008))
CODECS = ("raw", "packed:2")


@dataclass(frozen=True)
class ExpandSettings:
    """What is measured. threads: each number in a process of its own. seconds: per contender and case."""

    shapes: tuple[Shape, ...] = SHAPES
    codecs: tuple[str, ...] = CODECS
    sparsity: float = 0.5
    dtype: str = "bfloat16"
    threads: tuple[int, ...] = ()
    seconds: float = 1.0


@dataclass(frozen=True)
class ExpandCase:
    """One matrix with one codec on a number of threads. Timings are rated by dense bytes."""

    shape: Shape
    codec: str
    threads: int
    dense_bytes: int
    stored_bytes: int
    timings: tuple[Timing, ...]

    @property
    def memcpy_bytes_per_second(self) -> float:
        """Of ordinary pages, which the expanded arrays lie in."""
        return next(timing.bytes_per_second for timing in self.timings if timing.contender == MEMCPY)

    @property
    def limit_bytes_per_second(self) -> float:
        """Dense bytes per second if every byte, stored and dense, moved as fast as memcpy moves it."""
        moved = self.stored_bytes + self.dense_bytes
        return self.dense_bytes / moved * 2 * self.memcpy_bytes_per_second

    def to_json(self) -> dict[str, Any]:
        """As JSON, with ratios to memcpy."""
        return asdict(self) | {
            "shape": shape_name(self.shape),
            "limit_bytes_per_second": self.limit_bytes_per_second,
            "timings": [
                timing.to_json() | {"memcpy_ratio": timing.bytes_per_second / self.memcpy_bytes_per_second}
                for timing in self.timings
            ],
        }


@dataclass(frozen=True)
class ExpandRecord:
    """All cases of a run, with what they were measured on."""

    settings: ExpandSettings
    cases: tuple[ExpandCase, ...]
    environment: Environment

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        settings = asdict(self.settings) | {"shapes": [shape_name(shape) for shape in self.settings.shapes]}
        cases = [case.to_json() for case in self.cases]
        return {"benchmark": "expand", "settings": settings, "cases": cases} | asdict(self.environment)


def measure_expand(
    settings: ExpandSettings, *, report: Callable[[str], None] = lambda what: None
) -> ExpandRecord:
    """Measures every shape with every codec, on one thread and on all unless `settings` says otherwise.

    report: called with what is being done. Raises OptionError for a codec or a number of threads that cannot
    be, UnsupportedError where processes cannot be bound to CPUs.
    """
    for codec in settings.codecs:
        parse_codec(codec)
    threads = settings.threads or tuple(sorted({1, len(usable_cpus())}))
    cases = []
    with ExitStack() as stack:
        processes: dict[int, ProcessPoolExecutor] = {}
        for number in threads:
            check_threads(number)
            processes[number] = stack.enter_context(process_of(number))
        for shape in settings.shapes:
            for codec in settings.codecs:
                for number, process in processes.items():
                    report(f"expand {shape_name(shape)} {codec}, {number} thread(s)")
                    cases.append(run(process, expand_case, settings, shape, codec, number))
    return ExpandRecord(settings, tuple(cases), environment())


def expand_case(settings: ExpandSettings, shape: Shape, codec: str, threads: int) -> ExpandCase:
    """One case, in the process it is called in, which has so many CPUs."""
    cache = last_level_cache_bytes()
    weights = pruned_weights(shape, sparsity=settings.sparsity, dtype=settings.dtype)
    tensors = sparse_copies(encode_array(weights, codec), cache)
    contenders = memory_contenders(threads=threads, cache_bytes=cache, copying=True)
    contenders += jax_contenders(tensors, cache_bytes=cache)
    if threads == 1:
        contenders.append(numpy_contender(tensors))
    return ExpandCase(
        shape=shape,
        codec=codec,
        threads=threads,
        dense_bytes=weights.nbytes,
        stored_bytes=stored_bytes(tensors[0]),
        timings=race(contenders, seconds=settings.seconds),
    )


def jax_contenders(tensors: Sequence[SparseTensor], *, cache_bytes: int) -> list[Contender]:
    """Ours with each instruction set there is, and XLA; they write to the same buffers in turn."""
    layout = tensors[0].layout
    size = array_bytes(layout.shape, layout.dtype)
    outputs = [
        jnp.zeros(layout.shape, dtype_from_name(layout.dtype))
        for _ in range(copies_beyond(cache_bytes, size))
    ]
    sets = native.instruction_sets() if native.available() else ()
    ways = {f"ours {name}": _forced(name) for name in sets} | {"xla": xla.expand}
    return [_jax_contender(name, way, tensors, outputs) for name, way in ways.items()]


def _forced(instruction_set: str) -> Callable[[SparseTensor], jax.Array]:
    return lambda tensor: cpu.expand(tensor, instruction_set=instruction_set)


def _jax_contender(
    name: str,
    way: Callable[[SparseTensor], jax.Array],
    tensors: Sequence[SparseTensor],
    outputs: list[jax.Array],
) -> Contender:
    """One program. Its result takes the memory of the array that it is given beside the tensor."""
    program = jax.jit(lambda tensor, before: way(tensor), donate_argnums=1, keep_unused=True)
    turn = 0

    def call(index: int) -> None:
        nonlocal turn
        turn = (turn + 1) % len(outputs)
        outputs[turn] = program(tensors[index], outputs[turn]).block_until_ready()

    return Contender(name, outputs[0].nbytes, len(tensors), call)


def numpy_contender(tensors: Sequence[SparseTensor]) -> Contender:
    """NumPy on the same words."""
    host = [
        SparseTensor(tuple(np.asarray(words) for words in tensor.parts), tensor.layout) for tensor in tensors
    ]
    layout = host[0].layout
    out = np.zeros(layout.shape, dtype_from_name(layout.dtype))
    return Contender("numpy", out.nbytes, len(host), lambda index: numpy_expand(host[index], out))
