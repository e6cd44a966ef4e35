"""Products of a few rows of x with weights: ours with compressed ones, XLA and torch with dense ones.

All contenders of a case have the same threads, the same x and the same weights: pruned ones, which dense
products multiply zeros and all. Results are in the dtype of x. Timings are rated by the bytes of the weights
as the contender reads them: compressed, dense, or dense and widened.

limit: weights per second if all were reading the compressed ones, as fast as this machine reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from endor_jax import native
from endor_jax.arrays import dtype_from_name
from endor_jax.bench.bandwidth import READ, memory_contenders
from endor_jax.bench.environment import Environment, environment
from endor_jax.bench.matrices import Shape, copies, pruned_weights, shape_name, sparse_copies, stored_bytes
from endor_jax.bench.peers import installed, torch_product, xla_product
from endor_jax.bench.processes import check_threads, process_of, run
from endor_jax.bench.race import Contender, Timing, race
from endor_jax.format.encode import encode_array
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import parse_codec
from endor_jax.kernels.expand import cpu as cpu_expand
from endor_jax.kernels.linear import cpu as cpu_linear
from endor_jax.kernels.linear import dense, linear
from endor_jax.processors import last_level_cache_bytes, usable_cpus

SHAPES: tuple[Shape, ...] = ((4096, 4096), (4096, 11008), (8192, 28672))
ROWS = (1, 2, 4, 8, 16, 32)
FUSED, EXPANDED = "ours fused", "ours expanded"
XLA, TORCH = "xla", "torch"


@dataclass(frozen=True)
class LinearSettings:
    """What is measured. rows: of x. threads: each number in a process of its own. seconds: per contender."""

    shapes: tuple[Shape, ...] = SHAPES
    rows: tuple[int, ...] = ROWS
    codec: str = "packed:2"
    sparsity: float = 0.5
    dtype: str = "bfloat16"
    threads: tuple[int, ...] = ()
    seconds: float = 1.0


@dataclass(frozen=True)
class LinearCase:
    """One shape, one number of rows of x, one number of threads."""

    shape: Shape
    rows: int
    threads: int
    stored_bytes: int
    timings: tuple[Timing, ...]

    @property
    def weights(self) -> int:
        """Elements of the dense matrix."""
        return self.shape[0] * self.shape[1]

    def fastest(self, *prefixes: str) -> Timing | None:
        """Of the contenders whose names begin so; None if there are none."""
        found = [timing for timing in self.timings if timing.contender.startswith(prefixes)]
        return min(found, key=lambda timing: timing.median_seconds, default=None)

    def ratio(self, timing: Timing) -> float:
        """How many times as fast as the fastest dense peer."""
        peer = self.fastest(XLA, TORCH)
        assert peer is not None  # XLA is always there
        return peer.median_seconds / timing.median_seconds

    @property
    def limit_weights_per_second(self) -> float:
        """Of the compressed matrix, from the rate of reading."""
        read = self.fastest(READ)
        assert read is not None
        return self.weights * read.bytes_per_second / self.stored_bytes

    def to_json(self) -> dict[str, Any]:
        """As JSON, with rates and ratios."""
        timings = [
            timing.to_json()
            if timing.contender.startswith(READ)
            else timing.to_json()
            | {
                "weights_per_second": self.weights / timing.median_seconds,
                "dense_peer_ratio": self.ratio(timing),
            }
            for timing in self.timings
        ]
        return asdict(self) | {
            "shape": shape_name(self.shape),
            "limit_weights_per_second": self.limit_weights_per_second,
            "timings": timings,
        }


@dataclass(frozen=True)
class Crossover:
    """The first number of rows with which the fused product is not the fastest; None: it always is.

    of_ours: beside expanding first. of_all: beside dense products too.
    """

    shape: Shape
    threads: int
    of_ours: int | None
    of_all: int | None


@dataclass(frozen=True)
class LinearRecord:
    """All cases of a run, with what they were measured on."""

    settings: LinearSettings
    cases: tuple[LinearCase, ...]
    environment: Environment

    @property
    def crossovers(self) -> tuple[Crossover, ...]:
        """For every shape and number of threads that the fused product ran with."""
        found = []
        for key in dict.fromkeys((case.shape, case.threads) for case in self.cases):
            cases = sorted(
                (case for case in self.cases if (case.shape, case.threads) == key), key=lambda case: case.rows
            )
            if cases[0].fastest(FUSED):
                found.append(
                    Crossover(*key, _first_lost(cases, EXPANDED), _first_lost(cases, EXPANDED, XLA, TORCH))
                )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        settings = asdict(self.settings) | {"shapes": [shape_name(shape) for shape in self.settings.shapes]}
        crossovers = [asdict(each) | {"shape": shape_name(each.shape)} for each in self.crossovers]
        cases = [case.to_json() for case in self.cases]
        values = {"benchmark": "linear", "settings": settings, "crossovers": crossovers, "cases": cases}
        return values | asdict(self.environment)


def _first_lost(cases: Sequence[LinearCase], *rivals: str) -> int | None:
    """The first number of rows with which a rival is faster than the fused product."""
    for case in cases:
        fused, rival = case.fastest(FUSED), case.fastest(*rivals)
        if fused and rival and rival.median_seconds < fused.median_seconds:
            return case.rows
    return None


def measure_linear(
    settings: LinearSettings, *, report: Callable[[str], None] = lambda what: None
) -> LinearRecord:
    """Measures every shape with every number of rows, on all threads unless `settings` says otherwise.

    report: called with what is being done. Raises OptionError for a codec or a number of threads that cannot
    be, UnsupportedError where processes cannot be bound to CPUs.
    """
    parse_codec(settings.codec)
    cases: list[LinearCase] = []
    with ExitStack() as stack:
        processes = []
        for number in settings.threads or (len(usable_cpus()),):
            check_threads(number)
            processes.append((number, stack.enter_context(process_of(number))))
        for shape in settings.shapes:
            for number, process in processes:
                report(f"linear {shape_name(shape)}, {number} thread(s)")
                cases.extend(run(process, linear_cases, settings, shape, number))
    return LinearRecord(settings, tuple(cases), environment())


def linear_cases(settings: LinearSettings, shape: Shape, threads: int) -> list[LinearCase]:
    """All numbers of rows with one shape, in the process it is called in, which has so many CPUs."""
    cache = last_level_cache_bytes()
    weights = pruned_weights(shape, sparsity=settings.sparsity, dtype=settings.dtype)
    tensors = sparse_copies(encode_array(weights, settings.codec), cache)
    held = {
        name: copies(weights.astype(dtype_from_name(name)), cache) for name in (settings.dtype, "float32")
    }
    del weights
    cases = []
    for rows in settings.rows:
        random = np.random.default_rng(rows).standard_normal((rows, shape[1]), np.float32)
        x = jnp.asarray(random.astype(dtype_from_name(settings.dtype)))
        contenders = memory_contenders(threads=threads, cache_bytes=cache, copying=False)
        contenders += our_products(x, tensors)
        contenders += dense_products(x, held, threads=threads)
        timings = race(contenders, seconds=settings.seconds)
        cases.append(LinearCase(shape, rows, threads, stored_bytes(tensors[0]), timings))
    return cases


def our_products(x: jax.Array, tensors: Sequence[SparseTensor]) -> list[Contender]:
    """Fused with each instruction set there is, and expanded: by the extension, if built, and by XLA."""
    ways: dict[str, Callable[[jax.Array, SparseTensor], jax.Array]] = {}
    if native.available():
        ways |= {f"{FUSED} {name}": _fused(name) for name in native.instruction_sets()}
        ways |= {EXPANDED: _expanded}
    ways |= {f"{EXPANDED} by xla": lambda x, tensor: linear(x, tensor, implementation="xla")}
    size = stored_bytes(tensors[0])
    return [Contender(name, size, len(tensors), _program(way, x, tensors)) for name, way in ways.items()]


def _fused(instruction_set: str) -> Callable[[jax.Array, SparseTensor], jax.Array]:
    return lambda x, tensor: cpu_linear.linear(x, tensor, x.dtype, instruction_set=instruction_set)


def _expanded(x: jax.Array, tensor: SparseTensor) -> jax.Array:
    """What `linear` does with more rows than the fused product is for."""
    return dense(x, cpu_expand.expand(tensor, x, widened=True), output_dtype=x.dtype)


def dense_products(x: jax.Array, weights: dict[str, list[jax.Array]], *, threads: int) -> list[Contender]:
    """XLA and torch, if installed, with weights of each dtype and x of the same."""
    contenders = []
    for dtype, matrices in weights.items():
        vectors = x.astype(dtype)
        ways = {XLA: _program(xla_product, vectors, matrices)}
        if installed("torch"):
            ways[TORCH] = torch_product(vectors, matrices, threads=threads)
        contenders += [
            Contender(f"{name} {dtype}", matrices[0].nbytes, len(matrices), call)
            for name, call in ways.items()
        ]
    return contenders


def _program(
    way: Callable[[jax.Array, Any], jax.Array], x: jax.Array, weights: Sequence[Any]
) -> Callable[[int], object]:
    program = jax.jit(way)
    return lambda index: program(x, weights[index]).block_until_ready()
