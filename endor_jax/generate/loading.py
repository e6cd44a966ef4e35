"""From an open checkpoint and a plan to a runner: what is read and placed before the first token."""

from __future__ import annotations

from endor_jax.errors import CorruptCheckpointError
from endor_jax.format.record import Record
from endor_jax.generate.embedding import Embedding
from endor_jax.generate.placement import Geometry, pass_records, whole_record
from endor_jax.generate.runner import Runner
from endor_jax.location import Location
from endor_jax.models import Decoder, part_shapes
from endor_jax.store.manifest import Manifest, StoredRecord
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.devices import Devices
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.link import Link
from endor_jax.streaming.plan import Plan
from endor_jax.streaming.schedule import Schedule
from endor_jax.streaming.streamable import read_parts, spread
from endor_jax.streaming.timeline import Timeline


def check_records(path: Location, manifest: Manifest, decoder: Decoder) -> None:
    """Raises CorruptCheckpointError unless the records are those of a model of this config.

    A manifest with right digests may still have been put together by somebody.
    """
    expected = part_shapes(decoder)
    got = {
        record.name: {name: tensor.shape for name, tensor in manifest.layout(record).tensors}
        for record in manifest.records
    }
    differing = sorted(name for name in expected | got if expected.get(name) != got.get(name))
    if differing:
        name = differing[0]
        raise CorruptCheckpointError(
            f"checkpoint {path}, record {name}",
            got=f"tensors {got[name]}" if name in got else "no such record",
            expected=f"tensors {expected[name]}" if name in expected else "no such record, by its config",
            fix="convert the model again",
        )


def make_runner(
    checkpoint: Checkpoint,
    decoder: Decoder,
    shape: Geometry,
    *,
    plan: Plan,
    devices: Devices,
    link: Link | None = None,
    timeline: Timeline | None = None,
    schedule: Schedule | None = None,
) -> Runner:
    """Reads what stays in memory and starts reading ahead. link and what follows: as the executor takes them.

    Raises NotFoundError or CorruptCheckpointError.
    """
    manifest = checkpoint.manifest
    embedding = Embedding(checkpoint, manifest.record("embedding"), share=devices.share)
    ends = {
        record.name: _resident(checkpoint, record, devices)
        for record in manifest.records
        if record.name in ("stem", "final")
    }
    # Last, because it starts threads: nothing that can fail comes after it.
    records = pass_records(manifest, devices.share)
    executor = Executor(
        checkpoint, records, plan=plan, devices=devices, link=link, timeline=timeline, schedule=schedule
    )
    return Runner(decoder, devices, executor, shape, embedding, ends.get("stem"), ends.get("final"))


def _resident(checkpoint: Checkpoint, record: StoredRecord, devices: Devices) -> Record:
    """A record on the devices, for good."""
    own = whole_record(checkpoint.manifest, record, devices.share)
    return Record(spread(read_parts(checkpoint, own.parts), own, devices), own.layout)
