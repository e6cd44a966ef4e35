"""Budgets that put a model's records into tiers of the test's choice: plans are made, not guessed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from endor_jax import models
from endor_jax.errors import DoesNotFitError
from endor_jax.generate.placement import Geometry, geometry, plan_model
from endor_jax.store.manifest import Manifest, read_manifest
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.plan import DEPTH, Plan
from endor_jax.streaming.transfer import shares_memory

HUGE = 2**40


def plan_at(
    path: Path, device: int, host: int, *, context: int | None = None, depth: int = DEPTH, batch: int = 1
) -> Plan:
    manifest, shape = described(path, context, batch)
    return plan_model(
        manifest,
        shape,
        device_budget_bytes=device,
        host_budget_bytes=host,
        depth=depth,
        shares_memory=shares_memory(default_device()),
    )


def described(path: Path, context: int | None, batch: int = 1) -> tuple[Manifest, Geometry]:
    manifest = read_manifest(path)
    config = models.from_hf(json.loads((path / "config.json").read_text()))
    dtype = manifest.layout(manifest.record("embedding"))["weight"].dtype
    return manifest, geometry(config, dtype, context, batch)


def smallest(
    path: Path, *, context: int | None = None, depth: int = DEPTH, batch: int = 1
) -> tuple[int, int]:
    """The least device and host budgets that are accepted: what the refusals of nothing at all ask for."""

    def asked(device: int, host: int) -> int:
        with pytest.raises(DoesNotFitError) as refused:
            plan_at(path, device, host, context=context, depth=depth, batch=batch)
        match = re.search(r"([\d,]+) bytes", refused.value.expected)
        assert match
        return int(match[1].replace(",", ""))

    device = asked(0, HUGE)
    return device, asked(device, 0)


def budgets_of_tiers(
    path: Path, *, context: int | None = None, depth: int = DEPTH
) -> dict[str, tuple[int, int]]:
    """From all streamed from disk to all resident."""
    device, host = smallest(path, context=context, depth=depth)
    everything = plan_at(path, HUGE, HUGE, context=context, depth=depth).device_bytes
    kept = plan_at(path, device, HUGE, context=context, depth=depth).host_bytes
    return {
        "disk": (device, host),
        "disk and host": (device, (host + kept) // 2),
        "host": (device, kept),
        "disk and device": ((device + everything) // 2, host),
        "all three": ((device + everything) // 2, (host + kept) // 2),
        "device": (everything, host),
    }
