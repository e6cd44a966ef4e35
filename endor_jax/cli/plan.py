"""`endor plan`: does it fit, and what moves where, before anything is loaded or even converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endor_jax.cli.console import DeviceMemory, HostMemory, Json, Output, Quiet, Verbose
from endor_jax.cli.devices import mesh_of
from endor_jax.location import Location, ObjectPath, locate

if TYPE_CHECKING:
    from endor_jax.store.manifest import Manifest
    from endor_jax.store.reader_choice import Choice
    from endor_jax.streaming.advice import Free
    from endor_jax.streaming.plan import Plan
    from endor_jax.streaming.prediction import Prediction
    from endor_jax.streaming.transfer import Device


def command(
    subject: Annotated[
        str, typer.Argument(metavar="DST|SRC|config.json", help="A checkpoint, a source, or a config.json.")
    ],
    sparsity: Annotated[
        float | None, typer.Option(help="Of what is not converted yet: fraction of zeros in the layers.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of what is not converted yet. Default: its own.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of prompt and generation together.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences that go on at once.")] = 1,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Most of them that one step takes. Default: 32.")
    ] = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(min=1, help="Devices that would share every layer; --device-memory is that of each."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say which weights would live where, whether it fits, how fast it would be, and what would help."""
    from endor_jax import models
    from endor_jax.generate.costs import costs_of
    from endor_jax.generate.footprint import expected_peak_bytes
    from endor_jax.generate.placement import geometry, place_model
    from endor_jax.store.remote.objects import FETCH_BYTES
    from endor_jax.streaming.advice import advise
    from endor_jax.streaming.budget import budgets, default_device
    from endor_jax.streaming.devices import one_device, over_mesh
    from endor_jax.streaming.link import choose_link
    from endor_jax.streaming.plan import READS
    from endor_jax.streaming.prediction import predict
    from endor_jax.streaming.share import check_divides
    from endor_jax.streaming.sizes import format_size
    from endor_jax.streaming.transfer import shares_memory

    output = Output(as_json, quiet, verbose)
    path, device = locate(subject), default_device()
    mesh = mesh_of(None, tensor_parallel)
    devices = one_device(device) if mesh is None else over_mesh(mesh)
    manifest = _manifest(path, sparsity, dtype, shards=devices.count)
    check_divides(path, manifest, devices.count)
    config = models.from_hf(manifest.model or {})
    stored = manifest.layout(manifest.record("embedding"))["weight"].dtype
    device_bytes, host_bytes = budgets(device, device_memory, host_memory, devices=devices.count)
    choice = _choice(path, manifest)
    shape, plan = place_model(
        manifest,
        geometry(config, stored, context, batch_size, micro_batch=micro_batch, devices=devices.count),
        device_budget_bytes=device_bytes,
        host_budget_bytes=host_bytes,
        reads=READS if choice is None else choice.reads,
        shares_memory=shares_memory(device),
        staged=choose_link(device).staged,
        share=devices.share,
    )
    costs = None if choice is None else costs_of(manifest, shape, choice=choice, devices=devices)
    prediction = None if costs is None else predict(plan, costs)
    advice = () if costs is None else advise(plan, costs, _free(device))
    peak = expected_peak_bytes(plan) + (FETCH_BYTES if isinstance(path, ObjectPath) else 0)
    if as_json:
        output.json(
            plan_values(plan)
            | {"stored_bytes": manifest.stored_bytes, "expected_peak_host_bytes": peak}
            | {"prediction": prediction_values(prediction), "advice": list(advice)}
        )
        return
    output.line(repr(plan))
    output.line(f"process      at most {format_size(peak)} resident")
    output.line(f"prediction   {_why_none(path, choice) if prediction is None else prediction}")
    for sentence in advice:
        output.line(f"advice       {sentence}")


def _why_none(path: Location, choice: Choice | None) -> str:
    if isinstance(path, ObjectPath):
        return "none: a network is not measured"
    disk = path if path.is_dir() else path.parent
    return f"its disk was not measured: run endor doctor {disk}" if choice is None else "too small to measure"


def _choice(path: Location, manifest: Manifest) -> Choice | None:
    """How the parts would be read, and how fast; None for a disk of which nothing is known.

    Of what is not converted yet nothing can be measured: then what is remembered of the disk counts.
    """
    from endor_jax.memory import free_host_bytes
    from endor_jax.store.disk_rates import disk_of, remembered
    from endor_jax.store.reader import Checkpoint
    from endor_jax.store.reader_choice import SMALL_BYTES, Choice, choose

    if isinstance(path, ObjectPath) or _is_checkpoint(path):
        with Checkpoint(path) as opened:
            return opened.reader_choice
    total = sum(part.length_bytes for part in manifest.parts)
    if total <= SMALL_BYTES:
        return Choice("preadv", "too few bytes for it to matter")
    disk = disk_of(path, [part.length_bytes for part in manifest.parts])
    known = {reader: rates for reader, rates in remembered(disk).items() if rates is not None}
    return choose(known, read_bytes=total, cache_bytes=free_host_bytes()) if "preadv" in known else None


def _free(device: Device) -> Free:
    """What could be used at most: nine tenths of what is free, as default budgets are."""
    from endor_jax.memory import free_host_bytes
    from endor_jax.streaming.advice import Free
    from endor_jax.streaming.budget import FREE_SHARE, free_device_bytes
    from endor_jax.streaming.transfer import shares_memory

    host = int(FREE_SHARE * free_host_bytes())
    return Free(host if shares_memory(device) else int(FREE_SHARE * free_device_bytes(device)), host)


def _is_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint, or half of one."""
    from endor_jax.store.manifest import JOURNAL_FILE, MANIFEST_FILE, PARTS

    return any((path / name).exists() for name in (MANIFEST_FILE, JOURNAL_FILE, PARTS))


def _manifest(path: Location, sparsity: float | None, dtype: str | None, *, shards: int) -> Manifest:
    """The manifest of a checkpoint, or the one that converting with so many shards would give."""
    from endor_jax import models
    from endor_jax.conversion.estimate import estimate_config, estimate_source
    from endor_jax.errors import InvalidInputError
    from endor_jax.generate.loading import check_records
    from endor_jax.sources.json_object import read_json_object
    from endor_jax.sources.opening import open_source
    from endor_jax.store.reader import Checkpoint

    if isinstance(path, ObjectPath) or _is_checkpoint(path):
        if sparsity is not None or dtype is not None:
            raise InvalidInputError(
                "plan",
                got="--sparsity or --dtype for a checkpoint",
                expected="neither: they are settled",
                fix="leave them out",
            )
        with Checkpoint(path) as opened:
            check_records(opened.path, opened.manifest, models.decoder(models.from_hf(opened.model_config())))
            return opened.manifest
    if path.suffix == ".json":
        config = read_json_object(path)
        dtype = dtype or _own_dtype(config, path)
        return estimate_config(config, dtype=dtype, sparsity=sparsity or 0.0, shards=shards)
    with open_source(path) as source:
        return estimate_source(source, dtype=dtype, sparsity=sparsity or 0.0, shards=shards)


def _own_dtype(config: Mapping[str, Any], path: Path) -> str:
    """The dtype that a config.json tells. Raises InvalidInputError if the weights cannot be of it."""
    from endor_jax.arrays import FLOAT_FORMATS
    from endor_jax.errors import InvalidInputError

    own = config.get("dtype") or config.get("torch_dtype") or "float32"
    if not isinstance(own, str) or own not in FLOAT_FORMATS:
        raise InvalidInputError(
            f"dtype in {path}", got=f"{own!r:.40}", expected=", ".join(FLOAT_FORMATS), fix="pass --dtype"
        )
    return own


def plan_values(plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    return {
        "tiers": {demand.name: tier for demand, tier in zip(plan.demands, plan.tiers, strict=True)},
        "depth": plan.depth,
        "device_bytes": plan.device_bytes,
        "device_budget_bytes": plan.device_budget_bytes,
        "host_bytes": plan.host_bytes,
        "host_budget_bytes": plan.host_budget_bytes,
        "read_bytes_per_pass": plan.read_bytes_per_pass,
        "transferred_bytes_per_pass": plan.transferred_bytes_per_pass,
        "fixed_device_bytes": dict(plan.fixed.device),
        "fixed_host_bytes": dict(plan.fixed.host),
        "resident_bytes": plan.resident_bytes,
        "stream_buffer_bytes": plan.stream_buffer_bytes,
        "reads": plan.reads,
        "ring_bytes": plan.slots * plan.slot_bytes,
        "host_kept_bytes": plan.host_kept_bytes,
        "staging_bytes": plan.staging_bytes,
        "devices": plan.devices,
    }


def prediction_values(prediction: Prediction | None) -> dict[str, Any] | None:
    """A prediction as JSON."""
    if prediction is None:
        return None
    return asdict(prediction) | {"tokens_per_second": prediction.tokens_per_second}
