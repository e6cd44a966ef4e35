"""From an open checkpoint and a plan to a runner: what is read and placed before the first token."""

from __future__ import annotations

from endor_jax.format.record import Record
from endor_jax.generate.embedding import Embedding
from endor_jax.generate.placement import Geometry, pass_records
from endor_jax.generate.runner import Runner
from endor_jax.models import Decoder
from endor_jax.store.manifest import StoredRecord
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.executor import Executor, read_parts
from endor_jax.streaming.plan import Plan
from endor_jax.streaming.transfer import Device, put


def make_runner(
    checkpoint: Checkpoint, decoder: Decoder, shape: Geometry, *, plan: Plan, device: Device
) -> Runner:
    """Reads what stays in memory and starts reading ahead. Raises NotFoundError or CorruptCheckpointError."""
    manifest = checkpoint.manifest
    embedding = Embedding(checkpoint, manifest.record("embedding"))
    ends = {r.name: _resident(checkpoint, r, device) for r in manifest.records if r.name in ("stem", "final")}
    # Last, because it starts threads: nothing that can fail comes after it.
    executor = Executor(checkpoint, pass_records(manifest), plan=plan, device=device)
    return Runner(decoder, device, executor, shape, embedding, ends.get("stem"), ends["final"])


def _resident(checkpoint: Checkpoint, record: StoredRecord, device: Device) -> Record:
    """A record on the device, for good."""
    buffers = read_parts(checkpoint, record.parts)
    pairs = zip(buffers, record.parts, strict=True)
    words = tuple(put(buffer, part.buffer_bytes, device) for buffer, part in pairs)
    return Record(words, checkpoint.manifest.layout(record))
