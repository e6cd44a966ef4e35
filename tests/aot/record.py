"""The record of every kernel's machine code: `python -m tests.aot.record` writes it and prints a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xxhash
from rich.console import Console
from rich.progress import track
from rich.table import Table

import endor_jax.kernels
from endor_jax.bench.environment import environment
from tests.aot import cases, machine_code, targets
from tests.aot.cases import Case
from tests.aot.compiler import Compiled, compiler, missing
from tests.aot.machine_code import Kernel

PATH = Path(__file__).parents[2] / "docs" / "benchmarks" / "2026-11-22-cubins-h200.json"
PACKAGES = ("jax-cuda13-plugin", "jax-cuda13-pjrt")
TOOLS = ("ptxas", "nvdisasm")
COLUMNS = (
    "kernel",
    "shape",
    "dtype",
    "codec",
    "rows",
    "device",
    "per element",
    "registers",
    "spills",
    "stores",
    "shared",
)


def main() -> None:
    absent = missing()
    if absent:
        raise SystemExit(f"tests.aot.record: {absent}")
    with compiler() as opened:
        compiled = {
            case: opened.compile(case)
            for case in track(cases.every(), "compiling", console=Console(stderr=True))
        }
    PATH.write_text(json.dumps(_to_json(compiled), indent=1) + "\n")
    Console(width=max(120, Console().width)).print(table(compiled))


def sources() -> dict[str, str]:
    """Digests of the files that kernels are made of, by name."""
    kernels = Path(endor_jax.kernels.__file__).parent
    shared = [kernels / f"{name}.py" for name in ("config", "groups", "triton_fields", "warpgroup")]
    files = [*shared, *(kernels / "expand" / f"{name}.py" for name in ("by_part", "mosaic", "triton"))]
    files += (kernels / "linear").glob("triton*.py")
    return {
        str(path.relative_to(kernels)): xxhash.xxh3_64_hexdigest(path.read_bytes()) for path in sorted(files)
    }


def recorded_sources() -> dict[str, str]:
    """Those that the committed record was made of."""
    return json.loads(PATH.read_text())["sources"]


def read() -> dict[Case, Compiled]:
    """What the committed record says."""
    return {
        _case(each["case"]): _compiled(each["compiled"]) for each in json.loads(PATH.read_text())["cases"]
    }


def table(compiled: Mapping[Case, Compiled]) -> Table:
    """A line per case."""
    made = Table(*COLUMNS)
    for case, each in compiled.items():
        for kernel in each.kernels:
            size, device = " × ".join(map(str, case.shape)), f"sm_{case.capability.replace('.', '')}"
            rows = str(case.rows or "")
            made.add_row(case.kernel, size, case.dtype, case.codec, rows, device, *_figures(each, kernel))
    return made


def _figures(compiled: Compiled, kernel: Kernel) -> Iterator[str]:
    yield f"{compiled.instructions_per_element:.2f}"
    yield from (str(kernel.registers), str(kernel.spill_bytes))
    yield ", ".join(f"{count} × {bits}" for bits, count in kernel.stores.items())
    yield str(kernel.shared_bytes)


def _to_json(compiled: Mapping[Case, Compiled]) -> dict[str, Any]:
    return {
        "benchmark": "cubins",
        "environment": asdict(environment())
        | {
            "packages": {name: version(name) for name in PACKAGES},
            "tools": {name: machine_code.tool_version(name) for name in TOOLS},
        },
        "sources": sources(),
        "devices": targets.DEVICES,
        "note": "Compiled, not run. Of devices but the H200 only name and compute capability are their own: "
        "cores, memory and the like, as XLA was told them, are the H200's.",
        "cases": [
            {
                "case": asdict(case),
                "instructions_per_element": each.instructions_per_element,
                "compiled": asdict(each),
            }
            for case, each in compiled.items()
        ],
    }


def _case(found: Mapping[str, Any]) -> Case:
    return Case(**{**found, "shape": tuple(found["shape"])})


def _compiled(found: Mapping[str, Any]) -> Compiled:
    kernels = tuple(Kernel(**{**each, "loops": tuple(each["loops"])}) for each in found["kernels"])
    return Compiled(**{**found, "kernels": kernels, "large_operations": tuple(found["large_operations"])})


if __name__ == "__main__":
    main()
