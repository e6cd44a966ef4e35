"""What the steps of a model cost besides its products: measured on a small model of the family, remembered.

The small model has the heads, the cache and the rows of the real one, but fewer inputs and random matrices. A
step of it costs what any step does (dispatch, norms, rope, attention, the cache, products that wait for each
other), and its products, which are subtracted. Its caches and matrices are as many as no processor's cache
holds, or as the model has layers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from endor_jax import models
from endor_jax.arrays import dtype_from_name
from endor_jax.format.decode import decode_rows
from endor_jax.format.encode import encode_array, encode_record, with_escapes
from endor_jax.format.layout import FieldLayout, TensorSpec, plan_layout
from endor_jax.format.record import Record
from endor_jax.format.values import parse_codec
from endor_jax.generate import steps
from endor_jax.generate.placement import Geometry
from endor_jax.generate.sampling import Sampler, sample
from endor_jax.models import Decoder, KVCache, LlamaConfig, as_bits, create_cache
from endor_jax.prune.magnitude import apply_mask, magnitude_mask
from endor_jax.streaming.measure import uncached_bytes
from endor_jax.streaming.rates import Curve, Product, remembered
from endor_jax.streaming.transfer import Device

HIDDEN, INTERMEDIATE = 1024, 2816
"""Most of the small model: its matrices come from memory, as those of the real one do, so that everything
else in a step is as cold, and competes for as much, as it will."""
OPT_HEADS = 4
"""Heads of a small OPT, whose heads make up its hidden size; its cache is as much longer."""
STEPS = 24
"""In a row, as in a pass: one is dispatched while the one before runs."""
REPEATS = 6
LEAST_SECONDS = 1e-6
"""Of a step: what is subtracted was measured at another moment."""
POSITION = 100
"""Of the token that passes: an early one of a conversation."""


@dataclass(frozen=True)
class StepRates:
    """Seconds of a pass that depend on no matrix: of each layer's step and of each block of the head,
    products not counted, and once per pass (embedding rows, stem, final part, logits, sampling)."""

    block_seconds: float
    head_seconds: float
    ends_seconds: float


def step_rates(
    shape: Geometry, *, rows: int, curve: Callable[[Product], Curve], device: Device, codec: str, dtype: str
) -> StepRates:
    """Those of a model of this geometry with some rows (sequences) in a step: remembered, or measured now.

    codec, dtype: of the matrices. curve: what products cost.
    """
    # All of the config: biases, norms and windows take time too.
    geometry = f"{shape.config}, {shape.capacity} positions, {rows} rows, {shape.dtype}, {codec} {dtype}"

    def measure() -> tuple[float, ...]:
        rates = _measure(shape, rows=rows, curve=curve, device=device, codec=codec, dtype=dtype)
        return rates.block_seconds, rates.head_seconds, rates.ends_seconds

    figures = remembered(device, f"steps {geometry}", measure)
    return StepRates(*(figures if len(figures) == 3 else measure()))


def _measure(
    shape: Geometry, *, rows: int, curve: Callable[[Product], Curve], device: Device, codec: str, dtype: str
) -> StepRates:
    decoder, capacity = _small(shape)
    x_dtype = dtype_from_name(shape.dtype)
    hidden = decoder.config.hidden_size
    layers = _records(decoder.block_shapes, codec, dtype, count=shape.config.layers, device=device)
    x = jax.device_put(jnp.ones((rows, 1, hidden), x_dtype), device)
    start = jax.device_put(np.full(rows, min(POSITION, shape.context - 1), np.int32), device)
    caches = _caches(decoder, capacity, rows=rows, dtype=x_dtype, count=shape.config.layers, device=device)

    y = x

    def block(i: int) -> object:
        nonlocal y
        cache, record = caches[i % len(caches)], layers[i % len(layers)]
        y, caches[i % len(caches)] = steps.block_step(decoder, record, y if i else x, cache, start)
        return y

    def beside(seconds: float, shapes: Iterable[tuple[int, ...]], output: str) -> float:
        """Seconds without those of the products."""
        product = Product(codec, dtype, shape.dtype, output, rows)
        return seconds - sum(curve(product).seconds(prod(s)) for s in shapes if len(s) == 2)

    block_seconds = beside(_step_seconds(block), decoder.block_shapes.values(), shape.dtype)
    matrix = HIDDEN, hidden
    heads = _records({"weight": matrix}, codec, dtype, count=shape.config.layers, device=device)
    head_seconds = beside(
        _step_seconds(lambda i: steps.head_step(heads[i % len(heads)], x)), [matrix], "float32"
    )
    ends = _ends_seconds(shape, decoder, x=x, start=start, device=device, dtype=dtype)
    return StepRates(max(block_seconds, head_seconds, LEAST_SECONDS), max(head_seconds, LEAST_SECONDS), ends)


def _small(shape: Geometry) -> tuple[Decoder, int]:
    """The small model's decoder, and the positions of its cache, which takes the bytes of the real one."""
    config = shape.config
    if isinstance(config, LlamaConfig):
        small = replace(
            config,
            hidden_size=min(HIDDEN, config.hidden_size),
            intermediate_size=min(INTERMEDIATE, config.intermediate_size),
            layers=1,
        )
        return models.decoder(small), shape.capacity
    heads = min(config.heads, OPT_HEADS)
    small = replace(
        config,
        hidden_size=heads * config.head_dim,
        intermediate_size=min(INTERMEDIATE, config.intermediate_size),
        heads=heads,
        layers=1,
    )
    return models.decoder(small), shape.capacity * config.heads // heads


def _caches(
    decoder: Decoder, capacity: int, *, rows: int, dtype: np.dtype, count: int, device: Device
) -> list[KVCache]:
    """As many caches as a model of `count` layers has, or as are enough."""
    config = decoder.config

    def one() -> KVCache:
        cache = create_cache(
            batch=rows, capacity=capacity, kv_heads=config.kv_heads, head_dim=config.head_dim, dtype=dtype
        )
        return jax.device_put(as_bits(cache), device)

    first = one()
    enough = -(-uncached_bytes() // (first.keys.nbytes + first.values.nbytes))
    return [first, *(one() for _ in range(min(count, enough) - 1))]


def _records(
    shapes: Mapping[str, tuple[int, ...]], codec: str, dtype: str, *, count: int, device: Device
) -> list[Record]:
    """Random parameters of these shapes; matrices in a codec, half pruned. Copies of them, as many as a model
    has layers, or as are enough."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    specs: dict[str, TensorSpec] = {}
    for name, shape in shapes.items():
        array = random.standard_normal(shape, np.float32) * np.float32(0.1)
        matrix = len(shape) == 2
        # Pruned by magnitude: small values that are kept would be escapes, which cost what none does.
        kept = apply_mask(array, magnitude_mask(array, 0.5)) if matrix else array
        arrays[name] = kept.astype(dtype_from_name(dtype))
        specs[name] = TensorSpec(shape, dtype, parse_codec(codec) if matrix else None)
    layout = plan_layout(specs)
    encoded = encode_record(layout, arrays)
    enough = -(-uncached_bytes() // sum(part.nbytes for part in encoded.parts))
    copies = [
        tuple(jax.device_put(jnp.array(part, copy=True), device) for part in encoded.parts)
        for _ in range(min(count, enough))
    ]
    return [Record(words, with_escapes(layout, encoded.escapes)) for words in copies]


def _step_seconds(issue: Callable[[int], object]) -> float:
    """Seconds of one of many steps, each waited for when the next is dispatched, as an executor does."""
    jax.block_until_ready(issue(0))
    samples = []
    for _ in range(REPEATS):
        clock, running = time.perf_counter(), None
        for i in range(STEPS):
            result = issue(i)
            jax.block_until_ready(running)
            running = result
        jax.block_until_ready(running)
        samples.append((time.perf_counter() - clock) / STEPS)
    return statistics.median(samples)


def _ends_seconds(
    shape: Geometry, decoder: Decoder, *, x: jax.Array, start: jax.Array, device: Device, dtype: str
) -> float:
    """What a pass takes before its first layer and behind its last, the products of the head not counted."""
    rows = x.shape[0]
    stem = _dense(decoder.stem_shapes, dtype, device) if decoder.stem_shapes else None
    final = _dense(decoder.final_shapes, dtype, device) if decoder.final_shapes else None
    # Blocks of the embedding are decoded on the host.
    layout, words = _embedding_block(shape)
    values = np.zeros((rows, 1, decoder.config.embedding_size), dtype_from_name(shape.dtype))
    logits = jax.device_put(jnp.zeros((rows, 1, shape.config.vocabulary_size), jnp.float32), device)
    sampler, random = Sampler(), np.random.default_rng(0)

    def ends(_: int) -> None:
        decode_rows(words, layout, np.arange(rows) % layout.rows)
        entered, starts = jax.device_put((values, np.asarray(start)), device)
        y = steps.stem_step(decoder, stem, entered, starts)
        jax.block_until_ready(steps.final_step(decoder, final, y))
        wide = np.concatenate([np.asarray(logits)[:, 0]], axis=1)
        for row in wide:
            sample(row, sampler, random, seen=[])

    # A pass leaves nothing in the caches that this needs.
    pushed_out = np.ones(uncached_bytes(), np.uint8)
    ends(0)
    samples = []
    for _ in range(REPEATS):
        pushed_out += 1
        clock = time.perf_counter()
        ends(0)
        samples.append(time.perf_counter() - clock)
    return statistics.median(samples)


def _dense(shapes: Mapping[str, tuple[int, ...]], dtype: str, device: Device) -> Record:
    """Parameters of these shapes, all dense."""
    arrays = {name: np.ones(shape, dtype_from_name(dtype)) for name, shape in shapes.items()}
    layout = plan_layout({name: TensorSpec(array.shape, dtype, None) for name, array in arrays.items()})
    return Record(tuple(jax.device_put(part, device) for part in encode_record(layout, arrays).parts), layout)


def _embedding_block(shape: Geometry) -> tuple[FieldLayout, np.ndarray]:
    """Some rows of a random embedding, and their words."""
    rows = np.random.default_rng(0).standard_normal((64, shape.config.embedding_size), np.float32)
    encoded = encode_array(rows.astype(dtype_from_name(shape.dtype)), "dense-packed:3")
    assert isinstance(encoded.layout, FieldLayout)
    return encoded.layout, np.asarray(encoded.parts[0])
