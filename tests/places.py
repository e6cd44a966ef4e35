"""Which implementations a conformance suite is run through, and that on a GPU this is a test of the GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from endor_jax.kernels.place import default_place

QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""Compiler options for what Pallas' interpreter makes of a kernel: compiling that takes longest."""

INTERPRET = default_place().platform != "gpu"
"""Whether Triton's kernels are run by Pallas' interpreter here."""


def marked_on_this_device() -> list[pytest.MarkDecorator]:
    """Marks of a module that a GPU runs as it is, and the interpreter elsewhere."""
    return [] if INTERPRET else [pytest.mark.gpu]


def on_this_device(names: Iterable[Any], *, platform: str | None = None) -> list[Any]:
    """Each name once, as a parameter. Where JAX computes on a GPU all are marked `gpu`: `pytest -m gpu` there
    runs the suite, though it runs anywhere.

    platform: that of the default device.
    """
    marks = [pytest.mark.gpu] if (platform or default_place().platform) == "gpu" else []
    return [pytest.param(name, marks=marks, id=str(name)) for name in dict.fromkeys(names)]
