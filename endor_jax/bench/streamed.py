"""Ours as a contender: a converted model of which every record is in the tier that is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from endor_jax import models
from endor_jax.bench.contender_process import OpenModel
from endor_jax.errors import InvalidInputError
from endor_jax.generate.model import load
from endor_jax.generate.placement import geometry, plan_model
from endor_jax.store.reader import Checkpoint
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.link import choose_link
from endor_jax.streaming.plan import Plan, Tier
from endor_jax.streaming.transfer import shares_memory

ROOMY_BYTES = 2**50
"""A budget that never decides."""


@contextmanager
def streamed(checkpoint: Path, *, tier: Tier, reader: str | None, context: int) -> Iterator[OpenModel]:
    """The model with all layers in this tier: the budgets are what that takes with the head, to the byte.

    A head that is larger than a layer may be kept in memory all the same: it makes the slots that everything
    is read into larger than it is itself. Raises InvalidInputError if a layer is elsewhere, and what `load`
    raises.
    """
    # Several contenders share a GPU, and JAX would take three quarters of it for the first.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    wanted = plan_in_tier(checkpoint, tier, reader=reader, context=context)
    with load(
        checkpoint,
        device_memory=wanted.device_bytes,
        host_memory=wanted.host_bytes,
        reader=reader,
        context=context,
    ) as model:
        away = [d.name for d, at in zip(wanted.demands, model.plan.tiers, strict=True) if at != tier]
        if layers := [name for name in away if name.startswith("layers.")]:
            raise InvalidInputError(
                f"checkpoint {checkpoint}",
                got=f"a plan that has {layers[0]} elsewhere than in the {tier} tier",
                expected="all layers there",
                fix="take a model with more layers",
            )

        def generate(prompt: Sequence[int], tokens: int) -> Iterator[int]:
            return (token.id for token in model.generate(prompt, max_tokens=tokens))

        plan, platform = model.plan, default_device().platform
        moved = plan.read_bytes_per_pass if tier == "disk" else plan.transferred_bytes_per_pass
        yield OpenModel(generate, moved, "cpu" if platform == "cpu" else "cuda")


def plan_in_tier(path: Path, tier: Tier, *, reader: str | None, context: int) -> Plan:
    """The plan that `load` makes, but with every record of a pass in one tier, and no byte to spare."""
    device = default_device()
    with Checkpoint(path, reader=reader) as checkpoint:
        manifest, reads = checkpoint.manifest, checkpoint.reader_choice.reads
        config = models.decoder(models.from_hf(checkpoint.model_config())).config
    dtype = manifest.layout(manifest.record("embedding"))["weight"].dtype
    roomy = plan_model(
        manifest,
        geometry(config, dtype, context),
        device_budget_bytes=ROOMY_BYTES,
        host_budget_bytes=ROOMY_BYTES,
        reads=reads,
        shares_memory=shares_memory(device),
        staged=choose_link(device).staged,
    )
    return replace(roomy, tiers=(tier,) * len(roomy.tiers))
