"""`endor doctor`: what this machine offers, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from typing import Any

from rich.table import Table

from endor_jax.cli.console import Json, Output, Quiet, Verbose

PACKAGES = ("jax", "jaxlib", "flax", "tensorstore", "orbax-checkpoint", "numpy", "tokenizers", "safetensors")
EXTRAS = {"gguf": "gguf", "cuda": "jax_cuda13_plugin"}
"""Extra -> a module that it brings."""


def command(as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Report versions, devices, kernels and memory."""
    output = Output(as_json, quiet, verbose)
    values = examine()
    if as_json:
        output.json(values)
        return
    table = Table(show_header=False, box=None)
    for name, value in values.items():
        shown = value if isinstance(value, list) else [value]
        for line in shown:
            table.add_row(name, str(line))
            name = ""
    output.results.print(table)


def examine() -> dict[str, Any]:
    """What `doctor --json` prints."""
    import jax

    from endor_jax.kernels.backends import resolve
    from endor_jax.streaming.budget import free_host_bytes
    from endor_jax.streaming.sizes import format_size
    from endor_jax.version import VERSION

    devices = jax.local_devices()
    return {
        "endor_jax": VERSION,
        "python": platform.python_version(),
        "packages": [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES],
        "extras": [
            f"{extra}: {'installed' if importlib.util.find_spec(module) else 'not installed'}"
            for extra, module in EXTRAS.items()
        ],
        "devices": [f"{device.device_kind} ({device.platform} {device.id})" for device in devices],
        "expand": [f"{device.platform}: {resolve(None, device.platform)}" for device in devices],
        "free_host_memory": format_size(free_host_bytes()),
    }
