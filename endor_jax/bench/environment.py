"""What a measurement was made on: commit, versions, machine. Every record has it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from endor_jax import native
from endor_jax.processors import caches, usable_cpus
from endor_jax.version import VERSION

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "tensorstore")
PEERS = ("torch", "transformers", "accelerate")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Environment:
    """commit: of the working tree, None if there is none. versions: by package. machine: by property."""

    commit: str | None
    versions: Mapping[str, str]
    machine: Mapping[str, Any]


def environment() -> Environment:
    """That of this process."""
    return Environment(_commit(), _versions(), _machine())


def _commit() -> str | None:
    """The commit of the working tree that this package lies in, or of the copy that $ENDOR_COMMIT says it
    is; None if neither is known."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return os.environ.get("ENDOR_COMMIT")
    return done.stdout.strip() or os.environ.get("ENDOR_COMMIT")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "endor_jax": VERSION}
    found |= {name: version(name) for name in PACKAGES}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "model": _cpu_model(),
        "cpus": os.cpu_count(),
        "usable_cpus": len(usable_cpus()),
        "caches": caches(),
        "features": _features(),
        "instruction_sets": list(native.instruction_sets()) if native.available() else [],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _cpu_model() -> str:
    """Name, family, model and stepping: in a virtual machine the name alone says little."""
    fields = _cpuinfo()
    parts = [fields.get("model name", platform.processor() or "unknown")]
    parts += [f"{name} {fields[name]}" for name in ("cpu family", "model", "stepping") if name in fields]
    return ", ".join(parts)


def _features() -> list[str]:
    """Vector instructions, as Linux names them."""
    fields = _cpuinfo()
    flags = fields.get("flags", fields.get("Features", "")).split()
    return [flag for flag in flags if re.match(r"avx|amx|f16c|fma|bmi2|asimd|sve|bf16|gfni", flag)]


def _cpuinfo() -> dict[str, str]:
    """Of the first CPU; empty where there is no such file."""
    if not CPUINFO.is_file():
        return {}
    lines = [line.split(":", 1) for line in CPUINFO.read_text().split("\n\n")[0].splitlines()]
    return {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}
