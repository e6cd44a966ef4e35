"""What devices that share every layer give each other in a pass, from shapes: gathers, and their bytes.

Each gather leaves on every device what all of them computed of some vector, one for each row of x
(`models/axis.py`); nothing else passes between devices, weights never do.
"""

from __future__ import annotations

from endor_jax.arrays import dtype_from_name
from endor_jax.format.layout import RecordLayout
from endor_jax.generate.placement import Geometry
from endor_jax.models import LlamaConfig, OptConfig, head_share

LOGIT_BYTES = 4


def layer_gathers(config: LlamaConfig | OptConfig, devices: int) -> tuple[int, ...]:
    """Elements for each row of x that every gather of a layer leaves on a device, in order.

    The mixed heads, the output of attention, what the MLP has inside, its output: four. Before these the
    queries, and keys and values, where the rows of a device are not those of its heads. Padding of heads is
    counted, of rows not. None for one device.
    """
    if devices == 1:
        return ()
    share = head_share(config.heads, config.kv_heads, devices)
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    mixed = devices * share.kv_heads * share.group * config.head_dim
    before = (queries,) * (mixed != queries)
    before += (keys, keys) * (devices * share.kv_heads * config.head_dim != keys)
    return (*before, mixed, config.hidden_size, config.intermediate_size, config.hidden_size)


def end_gathers(config: LlamaConfig | OptConfig, devices: int) -> tuple[int, ...]:
    """The same of what is before the first layer and behind the last: an OPT's positions, and the matrices
    around embeddings that are narrower than x."""
    if devices == 1 or isinstance(config, LlamaConfig):
        return ()
    width = config.projected_size
    return (config.hidden_size,) if width is None else (config.hidden_size, config.hidden_size, width)


def gather_bytes(shape: Geometry, head: RecordLayout, *, heads: int) -> list[int]:
    """Bytes of every gather of a pass of one micro-batch. head: the layout of one block of vocabulary rows as
    a device has it; heads: how many there are."""
    item = dtype_from_name(shape.dtype).itemsize
    layers = layer_gathers(shape.config, shape.devices) * shape.config.layers
    ends = end_gathers(shape.config, shape.devices)
    sizes = [shape.rows * item * width for width in (*ends, *layers)]
    if shape.devices == 1:
        return sizes
    weight = dict(head.tensors)["weight"]
    return sizes + [shape.rows * LOGIT_BYTES * shape.devices * weight.shape[0]] * heads
