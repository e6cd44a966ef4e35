"""What the stages of a pass cost for a model: rates of the machine applied to its records.

Nothing is measured on the model's own weights. A product costs what one with a random matrix of as many
weights in the same codec does, a step what that of a small model of the family does, a read what the disk
gives to the reader that was chosen, a gather what one over as many devices does.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from endor_jax.format.layout import FieldLayout, RecordLayout
from endor_jax.generate.gathers import gather_bytes
from endor_jax.generate.placement import Geometry, pass_records
from endor_jax.generate.step_rates import step_rates
from endor_jax.processors import usable_cpus
from endor_jax.store.manifest import Manifest
from endor_jax.store.reader_choice import Choice
from endor_jax.streaming.devices import Devices
from endor_jax.streaming.gather_rates import gathering
from endor_jax.streaming.link import Link, choose_link
from endor_jax.streaming.measure import product_curve
from endor_jax.streaming.prediction import Costs
from endor_jax.streaming.rates import Curve, Product
from endor_jax.streaming.transfer import shares_memory

LOGITS = "float32"
OWN_BYTES = "dense-raw"


def costs_of(
    manifest: Manifest, shape: Geometry, *, choice: Choice, devices: Devices, link: Link | None = None
) -> Costs | None:
    """The costs of passes in which all sequences of the geometry go on by a token.

    What is not remembered of this machine is measured: some tenths of a second for each kind of product and
    for gathers, one or two seconds for a family's steps, because those compile. None for a checkpoint that is
    so small that its reader was not measured: then nothing else is. None too for devices of several
    processes: what they give each other can only be measured by all of them at once.
    """
    if not choice.rates or len(devices.own) != devices.count:
        return None
    device, layers = devices.first, shape.config.layers
    steps_per_record = -(-shape.sequences // shape.rows)
    records = pass_records(manifest, devices.share)
    layouts = [record.layout for record in records]
    seconds, ends = _compute_seconds(shape, layouts, devices)
    gathered = gather_bytes(shape, layouts[-1], heads=len(layouts) - layers)
    gathers, link = gathering(devices), choose_link(device) if link is None else link
    return Costs(
        record_seconds=tuple(steps_per_record * each for each in seconds),
        ends_seconds=steps_per_record * ends,
        readings=choice.expected,
        reads=choice.reads,
        cached=choice.cached,
        ring_bytes_per_second=link.ring_bytes_per_second,
        kept_bytes_per_second=link.kept_bytes_per_second,
        processors=len(usable_cpus()),
        sequences=shape.sequences,
        # Caches that wait on the host are moved to the device and back.
        moved_bytes=2 * shape.cache_bytes if shape.cache_tier == "host" else 0,
        gather_seconds=steps_per_record * math.fsum(map(gathers.seconds, gathered)),
    )


def _compute_seconds(
    shape: Geometry, layouts: Sequence[RecordLayout], devices: Devices
) -> tuple[list[float], float]:
    """Computing of one micro-batch: with each record of a pass, and before the first and behind the last.

    Where several devices are one processor's, their products, each of which uses all of it, add up; whatever
    else they do is one thread's each.
    """
    curve = functools.cache(functools.partial(product_curve, device=devices.first))
    kinds = Counter((matrix.codec, matrix.dtype) for matrix in _matrices(layouts[0]))
    ((codec, dtype), _), *_ = kinds.most_common(1)
    own = step_rates(shape, rows=shape.rows, curve=curve, device=devices.first, codec=codec, dtype=dtype)
    sharing = len(devices.own) if shares_memory(devices.first) else 1
    turns = sharing / min(sharing, len(usable_cpus()))

    @functools.cache
    def seconds(layout: RecordLayout, *, head: bool) -> float:
        step = own.head_seconds if head else own.block_seconds
        return turns * step + sharing * product_seconds(layout, shape, curve, head=head)

    layers = shape.config.layers
    return [seconds(layout, head=i >= layers) for i, layout in enumerate(layouts)], turns * own.ends_seconds


def product_seconds(
    layout: RecordLayout, shape: Geometry, curve: Callable[[Product], Curve], *, head: bool = False
) -> float:
    """Of all products of one micro-batch with the matrices of a record, as a device has it."""
    output = LOGITS if head else shape.dtype
    return sum(
        curve(Product(each.codec, each.dtype, shape.dtype, output, shape.rows)).seconds(each.elements)
        for each in _matrices(layout)
    )


@dataclass(frozen=True)
class _Matrix:
    codec: str
    dtype: str
    elements: int


def _matrices(layout: RecordLayout) -> list[_Matrix]:
    """The matrices of a record: compressed ones with the rows that pad its parts. Those that are stored as
    their own bytes are multiplied about as fast as such fields without a bitmap."""
    return [
        _Matrix(tensor.codec.name, tensor.dtype, layout.parts * tensor.rows * tensor.columns)
        if isinstance(tensor, FieldLayout)
        else _Matrix(OWN_BYTES, tensor.dtype, math.prod(tensor.shape))
        for _, tensor in layout.tensors
        if len(tensor.shape) > 1
    ]
