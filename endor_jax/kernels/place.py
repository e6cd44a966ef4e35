"""Where arrays are, asked of JAX: what `backends.resolve` chooses by."""

from __future__ import annotations

import re

import jax
import jax.core

from endor_jax import native
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.backends import Place


def place_of(tensor: SparseTensor) -> Place:
    """Where its words are; under a trace, where JAX compiles for by default."""
    first = tensor.parts[0]
    if isinstance(first, jax.Array) and not isinstance(first, jax.core.Tracer):
        return place_at(next(iter(first.devices())), native.instruction_sets())
    return default_place()


def default_place() -> Place:
    """Of the device that JAX takes where none is named."""
    named = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]  # device, platform, None
    device = jax.devices(named)[0] if named is None or isinstance(named, str) else named
    return place_at(device, native.instruction_sets())


def cpu_place() -> Place:
    """Of this machine's processors."""
    return Place("cpu", instruction_sets=native.instruction_sets())


def place_at(device: jax.Device, instruction_sets: tuple[str, ...]) -> Place:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no types
    """Of one device. instruction_sets: what the extension has, if it is the CPU."""
    if device.platform == "cpu":
        return Place("cpu", instruction_sets=instruction_sets)
    # "9.0" on CUDA, "gfx90a" on ROCm, absent elsewhere.
    numbers = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return Place(device.platform, (int(numbers[1]), int(numbers[2])) if numbers else None)
