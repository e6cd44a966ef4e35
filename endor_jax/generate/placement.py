"""What a model asks of memory: its records in the order of a pass, and what is needed whatever the tiers are.

Works on stored parts and on estimated ones alike, so a plan can be had before anything is converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from endor_jax.arrays import array_bytes, round_up
from endor_jax.errors import DoesNotFitError, OptionError
from endor_jax.format.layout import FieldLayout
from endor_jax.generate.caches import ON_DEVICE
from endor_jax.generate.embedding import held_bytes
from endor_jax.generate.exchange import exchanged_bytes
from endor_jax.generate.stages import PipelineStage
from endor_jax.kernels.backends import resolve
from endor_jax.kernels.linear.cpu import fused_rows
from endor_jax.kernels.place import cpu_place
from endor_jax.models import HeadShare, LlamaConfig, OptConfig, head_share
from endor_jax.store.manifest import Manifest, StoredRecord
from endor_jax.streaming.plan import READS, FixedCosts, Plan, make_plan
from endor_jax.streaming.share import WHOLE, Share, device_layout
from endor_jax.streaming.streamable import Streamable

CHUNK = 128
"""Tokens of a prompt that one step takes; longer prompts go chunk by chunk, layer-major."""
SHORTER_CHUNKS = (32, 64)
"""Sizes for prompts that are shorter: padding costs as much as tokens. Each size is compiled when it is first
needed, so they are few, and the last chunk of a longer prompt has the size of the others."""
MOST_ROWS = 32
"""Rows of a micro-batch where nobody says: up to here products are fused on CPU (`kernels/linear/cpu.py`) and
beyond it a row costs as much as before, while what attention makes of the cache grows with the rows."""
DEFAULT_CONTEXT = 2048

CacheTier = Literal["device", "host"]


@dataclass(frozen=True)
class Geometry:
    """What fixes the sizes of activations: the config, the compute dtype, the most tokens of a sequence.

    sequences: the most that are in the caches at once. micro_batch: most rows that pass through a layer
    together. cache_tier: where caches wait for their turn. What is None is for `place_model` to choose.
    devices: those that share every layer. stage: of a pipeline, the layers that are here; None for all.
    lanes: of a pipeline, how many times `sequences` have caches: they are in different stages at one time.
    """

    config: LlamaConfig | OptConfig
    dtype: str
    context: int
    sequences: int = 1
    micro_batch: int | None = None
    cache_tier: CacheTier | None = None
    devices: int = 1
    stage: PipelineStage | None = None
    lanes: int = 1

    @property
    def here(self) -> PipelineStage:
        """The stage; all layers where there is no pipeline."""
        return PipelineStage(range(self.config.layers)) if self.stage is None else self.stage

    @property
    def heads(self) -> HeadShare:
        """Those that a device has."""
        return head_share(self.config.heads, self.config.kv_heads, self.devices)

    @property
    def capacity(self) -> int:
        """Positions of a sequence in the cache: a prompt is written in whole chunks."""
        return round_up(self.context, CHUNK)

    @property
    def positions(self) -> int:
        """Tokens that pass through a layer together at most: all prompts of all sequences."""
        return self.sequences * self.capacity

    @property
    def most_rows(self) -> int:
        """Sequences of one micro-batch at most."""
        return MOST_ROWS if self.micro_batch is None else self.micro_batch

    @property
    def rows(self) -> int:
        """Sequences of each micro-batch when as many as can be are under way."""
        return micro_batches_for(self.sequences, self.most_rows)[1]

    @property
    def layer_cache_bytes(self) -> int:
        """Keys and values of one micro-batch in one layer, on each device."""
        shape = (2, self.rows, self.capacity, self.heads.kv_heads, self.config.head_dim)
        return array_bytes(shape, self.dtype)

    @property
    def cache_bytes(self) -> int:
        """Keys and values of all micro-batches in all layers of the stage, on each device."""
        micro_batches, _ = micro_batches_for(self.sequences, self.most_rows)
        return len(self.here.layers) * self.lanes * micro_batches * self.layer_cache_bytes


def micro_batches_for(sequences: int, most_rows: int) -> tuple[int, int]:
    """Into how many micro-batches some sequences are split, and the rows of each: as few as can be, all of
    one size, because a step is compiled for it."""
    count = -(-sequences // most_rows)
    return count, -(-sequences // count)


def chunk_for(tokens: int) -> int:
    """The size of the chunks that so many tokens of a prompt pass in: the smallest that holds all, if any."""
    return next((size for size in SHORTER_CHUNKS if tokens <= size), CHUNK)


def geometry(
    config: LlamaConfig | OptConfig,
    dtype: str,
    context: int | None,
    sequences: int = 1,
    *,
    micro_batch: int | None = None,
    devices: int = 1,
) -> Geometry:
    """The geometry for a context length; by default the model's own, at most 2048.

    Raises OptionError if the model has no positions for it, or for no sequences or rows.
    """
    if sequences < 1:
        raise OptionError(
            "batch", got=f"{sequences} sequences", expected="at least 1", fix="1 generates one at a time"
        )
    if micro_batch is not None and micro_batch < 1:
        raise OptionError(
            "micro-batch", got=f"{micro_batch} rows", expected="at least 1", fix="leave it at its default"
        )
    asked = min(config.max_positions, DEFAULT_CONTEXT) if context is None else context
    if not 0 < asked <= config.max_positions:
        raise OptionError(
            "context length",
            got=f"{asked} tokens",
            expected=f"1 to {config.max_positions}, the positions that the model was made for",
            fix="ask for fewer",
        )
    return Geometry(config, dtype, asked, sequences, micro_batch, devices=devices)


def head_record(manifest: Manifest) -> str:
    """The record that the output head is stored in: the embedding, where they are tied."""
    return "head" if any(record.name == "head" for record in manifest.records) else "embedding"


def whole_record(manifest: Manifest, record: StoredRecord, share: Share) -> Streamable:
    """A record as a share has it."""
    layout = device_layout(manifest.layout(record), share.count)
    return Streamable(record.name, share.parts(record.parts), layout)


def pass_records(
    manifest: Manifest, share: Share = WHOLE, stage: PipelineStage | None = None
) -> list[Streamable]:
    """Records of one pass in order: the layers, then the head, on each device one block of vocabulary rows at
    a time. Of a stage of a pipeline, those that are there."""
    layers = [record for record in manifest.records if record.name.startswith("layers.")]
    own = layers if stage is None else [layers[i] for i in stage.layers]
    records = [whole_record(manifest, record, share) for record in own]
    if stage is not None and not stage.last:
        return records
    head, count = manifest.record(head_record(manifest)), share.count
    block = device_layout(manifest.layout(head), len(head.parts))
    return records + [
        Streamable(f"{head.name} block {i}", share.parts(head.parts[i * count : (i + 1) * count]), block)
        for i in range(len(head.parts) // count)
    ]


def fixed_costs(
    manifest: Manifest, shape: Geometry, *, shares_memory: bool = False, share: Share = WHOLE
) -> FixedCosts:
    """Memory that a model takes wherever its layers are; all bounds, from shapes alone.

    shares_memory, share: as in `place_model`.
    """
    config = shape.config
    records = {record.name: record for record in manifest.records}
    ends = sum(
        whole_record(manifest, records[name], share).demand.buffer_bytes
        for name, here in (("stem", shape.here.first), ("final", shape.here.last))
        if here and name in records
    )
    # All chunks of the longest prompts, before and after the layer that runs.
    wide = max(config.hidden_size, config.embedding_size)
    positions = 2 * array_bytes((shape.positions, wide), shape.dtype)
    # One chunk, or a token of each row: the widest rows of the MLP in float32.
    tokens = max(CHUNK, shape.rows)
    widest = 4 * 4 * tokens * (config.intermediate_size + config.hidden_size)
    # What the products of attention make of one layer's keys and values: copies, transposed and widened.
    held = shape.rows * shape.capacity, shape.heads.kv_heads, config.head_dim
    mixed = 2 * array_bytes(held, "float32") + array_bytes(held, shape.dtype)
    logits = 2 * 4 * config.vocabulary_size * shape.sequences if shape.here.last else 0
    # Scores of all heads, masked, and their softmax, in float32.
    scores = 3 * 4 * tokens * shape.heads.kv_heads * shape.heads.group * shape.capacity
    records_here = pass_records(manifest, share, shape.stage)
    expanded = expanded_bytes(records_here, rows=tokens, shares_memory=shares_memory)
    waits = shape.cache_tier == "host"
    in_use = min(ON_DEVICE * shape.layer_cache_bytes, shape.cache_bytes)
    device = (
        ("KV cache, in use", in_use) if waits else ("KV cache", shape.cache_bytes),
        ("stem and final", ends),
        ("activations", positions + logits),
        # Attention is over when the MLP begins, and no matrix is dense while scores are.
        ("step temporaries", max(mixed + max(scores, expanded), widest + expanded)),
    )
    weight = manifest.layout(records["embedding"])["weight"]
    assert isinstance(weight, FieldLayout)  # vocabulary matrices are cut into blocks
    embedding = min(held_bytes(weight), records["embedding"].buffer_bytes)  # of a tiny one, all of it
    host = (("token embedding", embedding),) if shape.here.first else ()
    if not shape.here.alone:
        width = array_bytes((config.hidden_size,), shape.dtype)
        on_device, on_host = exchanged_bytes(
            shape.positions, width, rows=shape.sequences, row_bytes=4 * config.vocabulary_size
        )
        device += (("exchange between stages", on_device),)
        host += (("exchange between stages", on_host),)
    waiting = ("KV cache, waiting", len(share.places) * shape.cache_bytes)
    return FixedCosts(device, (waiting, *host) if waits else host)


def expanded_bytes(records: Sequence[Streamable], *, rows: int, shares_memory: bool) -> int:
    """Room for expanding inside a step: one matrix at a time, because each waits for the product before.

    On CPU, XLA makes its elements, once more where escapes are scattered into them, and for the product
    float32; the extension makes float32 at once, of what it does not multiply fused with as many rows of x.
    On a GPU the elements are all there is, and XLA's counts of bits beside them: 0.13 to 0.15 bytes for each
    (compiled for an H200, with 512 rows of x), but several parts are joined in a copy.
    """
    compiled = shares_memory and resolve(None, cpu_place()) == "cpu"

    def dense(tensor: FieldLayout, parts: int) -> int:
        element = tensor.number.bits // 8
        elements = parts * tensor.rows * tensor.columns
        if not shares_memory:
            return elements * element * (2 if parts > 1 else 1) + elements // 4
        if compiled:
            return 0 if fused_rows(rows, tensor) else elements * 4
        return elements * ((2 if tensor.codec.kind == "packed" else 1) * element + 4)

    layouts = {record.layout for record in records}
    return max(
        dense(tensor, layout.parts)
        for layout in layouts
        for _, tensor in layout.tensors
        if isinstance(tensor, FieldLayout)
    )


def place_model(
    manifest: Manifest,
    shape: Geometry,
    *,
    device_budget_bytes: int,
    host_budget_bytes: int,
    depth: int | None = None,
    reads: int = READS,
    shares_memory: bool = False,
    staged: bool = False,
    share: Share = WHOLE,
) -> tuple[Geometry, Plan]:
    """The plan for generating with a model, and the geometry with everything chosen.

    Caches wait in host memory only where they do not fit on the device; where memory is shared there is
    nowhere to move them to. The budgets never decide on the rows of a micro-batch, which change the rounding
    of products, but the error names those that would fit. Raises DoesNotFitError. share: of
    the devices of this process in a mesh. depth and what else follows: as `make_plan` takes them.
    """

    def attempt(tried: Geometry) -> Plan | DoesNotFitError:
        try:
            return make_plan(
                [record.demand for record in pass_records(manifest, share, tried.stage)],
                fixed=fixed_costs(manifest, tried, shares_memory=shares_memory, share=share),
                device_budget_bytes=device_budget_bytes,
                host_budget_bytes=host_budget_bytes,
                depth=depth,
                reads=reads,
                shares_memory=shares_memory,
                staged=staged,
                devices=len(share.places),
            )
        except DoesNotFitError as error:
            return error

    tiers: tuple[CacheTier, ...] = ("device",) if shares_memory else ("device", "host")
    refused: DoesNotFitError | None = None
    for rows in halved(shape.rows):
        for tier in tiers if shape.cache_tier is None else (shape.cache_tier,):
            tried = replace(shape, micro_batch=rows, cache_tier=tier)
            result = attempt(tried)
            if isinstance(result, DoesNotFitError):
                refused = result if rows == shape.rows else refused
            elif rows == shape.rows:
                return tried, result
            else:
                assert refused is not None  # of the rows that were asked for, in the tier that takes least
                raise _with_fewer_rows(refused, rows)
    assert refused is not None
    raise refused


def _with_fewer_rows(error: DoesNotFitError, rows: int) -> DoesNotFitError:
    fix = f"pass micro_batch={rows} (--micro-batch {rows}), which fits, or {error.fix}"
    return DoesNotFitError(error.where, got=error.got, expected=error.expected, fix=fix)


def halved(rows: int) -> list[int]:
    """Some rows, half of them, and so on down to one."""
    return [rows] if rows == 1 else [rows, *halved(-(-rows // 2))]


def plan_model(
    manifest: Manifest,
    shape: Geometry,
    *,
    device_budget_bytes: int,
    host_budget_bytes: int,
    depth: int | None = None,
    reads: int = READS,
    shares_memory: bool = False,
    staged: bool = False,
) -> Plan:
    """The plan that `place_model` makes. Raises DoesNotFitError."""
    _, plan = place_model(
        manifest,
        shape,
        device_budget_bytes=device_budget_bytes,
        host_budget_bytes=host_budget_bytes,
        depth=depth,
        reads=reads,
        shares_memory=shares_memory,
        staged=staged,
    )
    return plan
