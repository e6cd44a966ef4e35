"""`endor plan`: does it fit, and what moves where, before anything is loaded or even converted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endor_jax.cli.console import DeviceMemory, HostMemory, Json, Output, Quiet, Verbose

if TYPE_CHECKING:
    from endor_jax.store.manifest import Manifest
    from endor_jax.streaming.plan import Plan


def command(
    subject: Annotated[
        str, typer.Argument(metavar="DST|SRC|config.json", help="A checkpoint, a source, or a config.json.")
    ],
    sparsity: Annotated[
        float | None, typer.Option(help="Of what is not converted yet: fraction of zeros in the layers.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of what is not converted yet. Default: its own.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of prompt and generation together.")] = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say which weights would live where, how many bytes move per token, and whether it fits."""
    from endor_jax import models
    from endor_jax.generate.footprint import expected_peak_bytes
    from endor_jax.generate.placement import geometry, plan_model
    from endor_jax.streaming.budget import budgets, default_device
    from endor_jax.streaming.sizes import format_size
    from endor_jax.streaming.transfer import shares_memory

    output = Output(as_json, quiet, verbose)
    manifest = _manifest(Path(subject), sparsity, dtype)
    config = models.from_hf(manifest.model or {})
    stored = manifest.layout(manifest.record("embedding"))["weight"].dtype
    device_bytes, host_bytes = budgets(default_device(), device_memory, host_memory)
    plan = plan_model(
        manifest,
        geometry(config, stored, context),
        device_budget_bytes=device_bytes,
        host_budget_bytes=host_bytes,
        shares_memory=shares_memory(default_device()),
    )
    peak = expected_peak_bytes(plan)
    if as_json:
        output.json(
            plan_values(plan) | {"stored_bytes": manifest.stored_bytes, "expected_peak_host_bytes": peak}
        )
    else:
        output.line(repr(plan))
        output.line(f"process      at most {format_size(peak)} resident")


def _manifest(path: Path, sparsity: float | None, dtype: str | None) -> Manifest:
    """The manifest of a checkpoint, or the one that converting would give."""
    from endor_jax import models
    from endor_jax.conversion.estimate import estimate_config, estimate_source
    from endor_jax.errors import InvalidInputError
    from endor_jax.generate.loading import check_records
    from endor_jax.sources.json_object import read_json_object
    from endor_jax.sources.opening import open_source
    from endor_jax.store.manifest import JOURNAL_FILE, MANIFEST_FILE, PARTS
    from endor_jax.store.reader import Checkpoint

    if any((path / name).exists() for name in (MANIFEST_FILE, JOURNAL_FILE, PARTS)):  # or half of one
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
        return estimate_config(config, dtype=dtype or _own_dtype(config, path), sparsity=sparsity or 0.0)
    with open_source(path) as source:
        return estimate_source(source, dtype=dtype, sparsity=sparsity or 0.0)


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
        "ring_bytes": plan.slots * plan.slot_bytes,
    }
