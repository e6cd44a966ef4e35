"""What the stages of a pass cost for a model: rates of the machine applied to its records.

Nothing is measured on the model's own weights. A product costs what one with a random matrix of as many
weights in the same codec does, a step what that of a small model of the family does, a read what the disk
gives to the reader that was chosen.
"""

from __future__ import annotations

import functools
from collections import Counter

from endor_jax.format.layout import FieldLayout, RecordLayout
from endor_jax.generate.placement import Geometry, pass_records
from endor_jax.generate.step_rates import step_rates
from endor_jax.processors import usable_cpus
from endor_jax.store.manifest import Manifest
from endor_jax.store.reader_choice import Choice
from endor_jax.streaming.link import Link, choose_link
from endor_jax.streaming.measure import product_curve
from endor_jax.streaming.prediction import Costs
from endor_jax.streaming.rates import Product
from endor_jax.streaming.transfer import Device

LOGITS = "float32"


def costs_of(
    manifest: Manifest, shape: Geometry, *, choice: Choice, device: Device, link: Link | None = None
) -> Costs | None:
    """The costs of passes in which all sequences of the geometry go on by a token.

    What is not remembered of this machine is measured: some tenths of a second for each kind of product, one
    or two seconds for a family's steps, because those compile. None for a checkpoint that is so small that
    its reader was not measured: then nothing else is.
    """
    if not choice.rates:
        return None
    rows = shape.rows
    steps_per_record = -(-shape.sequences // rows)
    curve = functools.cache(functools.partial(product_curve, device=device))
    records = pass_records(manifest)
    codec, dtype = Counter(
        (tensor.codec.name, tensor.dtype) for tensor in fields(records[0].layout)
    ).most_common(1)[0][0]
    own = step_rates(shape, rows=rows, curve=curve, device=device, codec=codec, dtype=dtype)
    layers, link = shape.config.layers, choose_link(device) if link is None else link

    @functools.cache
    def seconds(layout: RecordLayout, *, head: bool) -> float:
        products = sum(
            curve(_product(tensor, shape, rows, head=head)).seconds(
                layout.parts * tensor.rows * tensor.columns
            )
            for tensor in fields(layout)
        )
        return steps_per_record * ((own.head_seconds if head else own.block_seconds) + products)

    return Costs(
        record_seconds=tuple(seconds(record.layout, head=i >= layers) for i, record in enumerate(records)),
        ends_seconds=steps_per_record * own.ends_seconds,
        readings=choice.expected,
        reads=choice.reads,
        cached=choice.cached,
        ring_bytes_per_second=link.ring_bytes_per_second,
        kept_bytes_per_second=link.kept_bytes_per_second,
        processors=len(usable_cpus()),
        sequences=shape.sequences,
        # Caches that wait on the host are moved to the device and back.
        moved_bytes=2 * shape.cache_bytes if shape.cache_tier == "host" else 0,
    )


def fields(layout: RecordLayout) -> list[FieldLayout]:
    """The compressed matrices of a record."""
    return [tensor for _, tensor in layout.tensors if isinstance(tensor, FieldLayout)]


def _product(tensor: FieldLayout, shape: Geometry, rows: int, *, head: bool) -> Product:
    return Product(tensor.codec.name, tensor.dtype, shape.dtype, LOGITS if head else shape.dtype, rows)
