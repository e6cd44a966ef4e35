"""Measuring the rates of this machine, a tenth of a second each, with matrices that no cache holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from endor_jax.arrays import dtype_from_name
from endor_jax.format.encode import encode_array
from endor_jax.format.tensor import SparseTensor
from endor_jax.format.values import parse_codec
from endor_jax.kernels.expand import expand
from endor_jax.kernels.linear import linear
from endor_jax.processors import last_level_cache_bytes
from endor_jax.prune.magnitude import apply_mask, magnitude_mask
from endor_jax.streaming.rates import Curve, Product, remembered
from endor_jax.streaming.transfer import Device

SHAPES = ((128, 128), (512, 1024), (2048, 2048))
"""(outputs, inputs) of the matrices that a curve goes through: one that costs what any operation does, one of
a small model, one large enough for its rate to be that of larger ones."""
SECONDS = 0.02
"""For one round of a point of a curve, or of a rate."""
ROUNDS = 5
"""What is measured takes turns: machines are faster or slower for a tenth of a second at a time."""
LEAST_CALLS = 3
BLOCK_BYTES = 32 * 2**20
"""Copied at a time."""
CACHES = 4
"""What is measured in turn totals this many times the last-level cache."""
MOST_UNCACHED_BYTES = 256 * 2**20
"""... or this much: it is for a moment, and beside every budget."""
MOST_COPIES = 256
"""Of a tiny matrix, which is measured for what any operation costs."""


def product_curve(product: Product, device: Device, *, anew: bool = False) -> Curve:
    """Seconds of such products on a device, by weights: remembered, or measured now."""

    def measure() -> list[float]:
        return turns_seconds([_product_call(product, shape, device) for shape in SHAPES])

    seconds = remembered(device, product.name, measure, anew=anew)
    if len(seconds) != len(SHAPES):  # kept by somebody else
        return product_curve(product, device, anew=True)
    return Curve(tuple((rows * columns, each) for (rows, columns), each in zip(SHAPES, seconds, strict=True)))


def _product_call(product: Product, shape: tuple[int, int], device: Device) -> Callable[[int], object]:
    """A product with matrix number i of a shape."""
    matrices = matrix_copies(shape, product.codec, product.dtype, device)
    x = np.random.default_rng(0).standard_normal((product.rows, 1, shape[1]), np.float32)
    x = jax.device_put(x.astype(dtype_from_name(product.x_dtype)), device)
    step = jax.jit(partial(linear, output_dtype=dtype_from_name(product.output_dtype)))
    return lambda i: step(x, matrices[i % len(matrices)])


def expand_rate(codec: str, dtype: str, device: Device, *, anew: bool = False) -> float:
    """Dense bytes per second that half-pruned matrices of a codec expand to."""
    shape = SHAPES[-1]

    def measure() -> list[float]:
        matrices = matrix_copies(shape, codec, dtype, device)
        (seconds,) = turns_seconds([lambda i: expand(matrices[i % len(matrices)])])
        return [shape[0] * shape[1] * dtype_from_name(dtype).itemsize / seconds]

    return remembered(device, f"expand {codec} {dtype}", measure, anew=anew)[0]


def copy_rate(device: Device, *, anew: bool = False) -> float:
    """Bytes per second that one thread copies in host memory."""

    def measure() -> list[float]:
        source, target = (np.ones(BLOCK_BYTES, np.uint8) for _ in range(2))
        (seconds,) = turns_seconds([lambda _: np.copyto(target, source)])
        return [BLOCK_BYTES / seconds]

    return remembered(device, "copy", measure, anew=anew)[0]


def matrix_copies(shape: tuple[int, int], codec: str, dtype: str, device: Device) -> list[SparseTensor]:
    """A random matrix, half pruned unless its codec has no bitmap, in more copies than a cache holds.

    Encoded once: what a cache sees of a copy is its words.
    """
    weights = np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(shape[1] ** -0.5)
    if parse_codec(codec).bitmap:
        weights = apply_mask(weights, magnitude_mask(weights, 0.5))
    encoded = encode_array(weights.astype(dtype_from_name(dtype)), codec)
    (words,) = (np.asarray(part) for part in encoded.parts)
    count = max(2, -(-uncached_bytes() // words.nbytes))
    return [
        SparseTensor((jax.device_put(jnp.array(words, copy=True), device),), encoded.layout)
        for _ in range(min(count, MOST_COPIES))
    ]


def turns_seconds(calls: Sequence[Callable[[int], object]]) -> list[float]:
    """Seconds of each of some calls, which take turns and are waited for: the median of the rounds.

    The first call of each, which compiles, does not count.
    """
    for call in calls:
        jax.block_until_ready(call(0))
    rounds = [[_seconds(call) for call in calls] for _ in range(ROUNDS)]
    return [statistics.median(samples) for samples in zip(*rounds, strict=True)]


def uncached_bytes() -> int:
    """Of matrices that take turns, so many are more than a cache holds; bounded, for they take memory."""
    return min(CACHES * last_level_cache_bytes(), MOST_UNCACHED_BYTES)


def _seconds(call: Callable[[int], object]) -> float:
    """Mean of one round: a pass is the sum of many, slow ones too."""
    begun, count = time.perf_counter(), 0
    while count < LEAST_CALLS or time.perf_counter() - begun < SECONDS:
        count += 1
        jax.block_until_ready(call(count))
    return (time.perf_counter() - begun) / count
