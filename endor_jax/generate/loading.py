"""From an open checkpoint to a plan and a runner per stage: what is placed before the first token."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from endor_jax.errors import CorruptCheckpointError, UnsupportedError
from endor_jax.format.record import Record
from endor_jax.generate.embedding import Embedding
from endor_jax.generate.exchange import Exchange
from endor_jax.generate.pipeline import Pipeline
from endor_jax.generate.placement import (
    Geometry,
    geometry,
    head_record,
    pass_records,
    place_model,
    whole_record,
)
from endor_jax.generate.runner import Runner
from endor_jax.generate.stages import stages_of
from endor_jax.location import Location
from endor_jax.models import Decoder, part_shapes
from endor_jax.store.manifest import Manifest, StoredRecord, to_json
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.budget import budgets
from endor_jax.streaming.devices import Devices
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.link import Link, choose_link
from endor_jax.streaming.memory_pools import check_pinned_pool, pinned_pool_bytes
from endor_jax.streaming.plan import Plan
from endor_jax.streaming.schedule import Schedule
from endor_jax.streaming.share import check_divides
from endor_jax.streaming.streamable import read_parts, spread
from endor_jax.streaming.timeline import Timeline
from endor_jax.streaming.transfer import shares_memory


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


@dataclass(frozen=True)
class Placed:
    """One stage of this process: its devices, geometry and plan, and how its parts travel."""

    devices: Devices
    shape: Geometry
    plan: Plan
    link: Link


def lane_shape(
    checkpoint: Checkpoint,
    decoder: Decoder,
    staged: Mapping[int, Devices],
    *,
    stages: int,
    context: int | None,
    batch: int,
    micro_batch: int | None,
) -> Geometry:
    """The geometry of each of as many lanes as there are stages, or sequences if they are fewer.

    Raises OptionError, InvalidInputError for parts that do not divide among the devices of a stage, and
    PeerError unless every process of the run has the same model and asks for the same.
    """
    manifest, devices = checkpoint.manifest, next(iter(staged.values()))
    check_divides(checkpoint.path, manifest, devices.count)
    dtype = manifest.layout(manifest.record("embedding"))["weight"].dtype
    lanes = max(1, min(stages, batch))
    own = geometry(
        decoder.config, dtype, context, -(-batch // lanes), micro_batch=micro_batch, devices=devices.count
    )
    devices.agree(
        checkpoint=to_json(manifest)["digest"],
        stages=stages,
        devices=devices.count,
        context=own.context,
        batch=lanes * own.sequences,
        micro_batch=own.most_rows,
    )
    return replace(own, lanes=lanes)


def place_stages(
    checkpoint: Checkpoint,
    staged: Mapping[int, Devices],
    *,
    shape: Geometry,
    count: int,
    device_memory: str | int | None,
    host_memory: str | int | None,
    depth: int | None,
) -> dict[int, Placed]:
    """Plans for the stages of this process, by number, out of `count`; each as if it were a model of its own.

    shape: of a lane. device_memory: of each device. host_memory: of the process, whose stages share it
    evenly. Raises DoesNotFitError, and InvalidInputError for fewer layers than stages.
    """
    manifest, first = checkpoint.manifest, next(iter(staged.values())).first
    stages = stages_of(manifest, count, head=head_record(manifest))
    own_devices = sum(len(devices.own) for devices in staged.values())
    device_bytes, host_bytes = budgets(first, device_memory, host_memory, devices=own_devices)
    placed = {}
    for number, devices in staged.items():
        own, plan = place_model(
            manifest,
            replace(shape, stage=stages[number]),
            device_budget_bytes=device_bytes,
            host_budget_bytes=host_bytes // len(staged),
            depth=depth,
            reads=checkpoint.reader_choice.reads,
            shares_memory=shares_memory(first),
            staged=choose_link(first).staged,
            share=devices.share,
        )
        # What host memory keeps may be more than one of the ways has room for.
        placed[number] = Placed(devices, own, plan, choose_link(first, kept_bytes=plan.host_kept_bytes))
    waiting = waiting_cache_bytes(placed.values())
    if waiting:
        check_pinned_pool(waiting, pinned_pool_bytes(os.environ))
    return placed


def waiting_cache_bytes(placed: Iterable[Placed]) -> int:
    """What caches that wait in host memory take there: those of every device of this process."""
    return sum(
        len(each.devices.own) * each.shape.cache_bytes for each in placed if each.shape.cache_tier == "host"
    )


def make_pipeline(
    checkpoint: Checkpoint,
    decoder: Decoder,
    placed: Mapping[int, Placed],
    *,
    exchange: Exchange | None,
    timeline: Timeline | None,
) -> Pipeline:
    """The stages of this process, which begin to read. exchange: None for a single stage.

    Raises as `make_runner` does, and UnsupportedError for a timeline of several stages.
    """
    if timeline is not None and len(placed) > 1:
        raise UnsupportedError(
            "timeline",
            got=f"{len(placed)} pipeline stages in one process",
            expected="one, whose reads, transfers and steps it shows",
            fix="start a process for each stage",
        )
    runners: dict[int, Runner] = {}
    try:
        for number, each in placed.items():
            runners[number] = make_runner(
                checkpoint,
                decoder,
                each.shape,
                plan=each.plan,
                devices=each.devices,
                link=each.link,
                timeline=timeline,
            )
    except BaseException:
        for runner in runners.values():
            runner.close()
        raise
    return Pipeline(runners, exchange)


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
    manifest, here = checkpoint.manifest, shape.here
    embedding = None
    if here.first:
        embedding = Embedding(checkpoint, manifest.record("embedding"), share=devices.share)
    ends = {
        record.name: _resident(checkpoint, record, devices)
        for record in manifest.records
        if (record.name == "stem" and here.first) or (record.name == "final" and here.last)
    }
    # Last, because it starts threads: nothing that can fail comes after it.
    records = pass_records(manifest, devices.share, shape.stage)
    executor = Executor(
        checkpoint, records, plan=plan, devices=devices, link=link, timeline=timeline, schedule=schedule
    )
    return Runner(decoder, devices, executor, shape, embedding, ends.get("stem"), ends.get("final"))


def _resident(checkpoint: Checkpoint, record: StoredRecord, devices: Devices) -> Record:
    """A record on the devices, for good."""
    own = whole_record(checkpoint.manifest, record, devices.share)
    return Record(spread(read_parts(checkpoint, own.parts), own, devices), own.layout)
