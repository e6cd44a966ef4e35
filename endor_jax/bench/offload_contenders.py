"""The files of one workload for ours and for Accelerate, and the contenders that run from them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from endor_jax.bench.accelerate_peer import cpu_offload, device_map, disk_offload, write_offloaded
from endor_jax.bench.contender_process import Contender
from endor_jax.bench.page_cache import files_below, write_back
from endor_jax.bench.processes import process_of, run
from endor_jax.bench.streamed import streamed
from endor_jax.bench.workloads import make_whole, write_workload
from endor_jax.conversion.api import convert
from endor_jax.conversion.export import export
from endor_jax.streaming.plan import Tier

READERS = (None, "direct", "mmap")
"""Of ours from disk: the one that is chosen by measuring, and two by name."""
TIERS: dict[str, Tier] = {"disk": "disk", "cpu": "host"}
"""By what is offloaded to."""


@dataclass(frozen=True)
class Files:
    """Directories with the same weights. checkpoint: ours. mapped: a copy of it. dense: of Hugging Face.
    offloaded: what `disk_offload` reads."""

    checkpoint: Path
    mapped: Path
    dense: Path
    offloaded: Path


def files_for(work_directory: Path, model: str, *, layers: int, sparsity: float) -> Files:
    """Where the files of a workload are."""
    home = work_directory / f"{model}-{layers}-layers-{sparsity:g}"
    return Files(home / "checkpoint.endor", home / "mapped.endor", home / "dense", home / "offloaded")


def prepare(files: Files, model: str, *, layers: int, sparsity: float, report: Callable[[str], None]) -> None:
    """Makes the workload `model`, prunes, converts and exports it, as far as that is not there yet.

    What is there is taken as it is: it has its name only once it is whole. Raises OptionError for a workload
    there is not, and what `convert` raises.
    """
    source = files.checkpoint.with_name("source")
    source.parent.mkdir(parents=True, exist_ok=True)

    def converted(path: Path) -> None:
        with process_of(1) as process:  # where it does not take the memory of a GPU
            run(process, functools.partial(write_workload, layers=layers), source, model)
            run(process, functools.partial(convert, prune="magnitude", sparsity=sparsity), source, path)
        shutil.rmtree(source)  # the exported one has the weights that ours has

    def offloaded(path: Path) -> None:
        with process_of(1) as process:
            run(process, write_offloaded, files.dense, path)

    made: dict[Path, tuple[str, Callable[[Path], object]]] = {
        files.checkpoint: (f"making and converting {model}, {layers} layers", converted),
        # Pages that a process has mapped cannot be dropped for the others.
        files.mapped: ("copying it", functools.partial(shutil.copytree, files.checkpoint)),
        files.dense: ("exporting it", functools.partial(export, files.checkpoint)),
        files.offloaded: ("writing what disk_offload reads", offloaded),
    }
    for path, (what, make) in made.items():
        if not path.exists():
            report(what)
            make_whole(path, make)
        write_back(files_below(path))


def ours(files: Files, *, offload: str, context: int) -> list[Contender]:
    """Ours; first with the reader that is chosen by itself."""

    def one(reader: str | None) -> Contender:
        checkpoint = files.mapped if reader == "mmap" else files.checkpoint
        return Contender(
            f"ours, {reader}" if reader else "ours",
            streamed,
            {"checkpoint": checkpoint, "tier": TIERS[offload], "reader": reader, "context": context},
            files=files_below(checkpoint),
            reads_ahead=True,
        )

    return [one(reader) for reader in (READERS if offload == "disk" else READERS[:1])]


def peers(files: Files, *, offload: str, device: str, threads: int) -> list[Contender]:
    """Accelerate's ways on the device that ours takes. offload: "disk" or "cpu"."""
    where = {"dense": files.dense, "device": device, "threads": threads}
    if offload == "disk":
        return [
            Contender(
                "disk_offload",
                disk_offload,
                where | {"offloaded": files.offloaded},
                files=files_below(files.offloaded),
            ),
            Contender(
                "device_map",
                device_map,
                where | {"directory": files.dense.with_name("unused")},
                files=files_below(files.dense),
            ),
        ]
    ways = {"cpu_offload": False} | ({"cpu_offload, pinned": True} if device != "cpu" else {})
    return [
        Contender(name, cpu_offload, where | {"pinned": pinned}, files_below(files.dense))
        for name, pinned in ways.items()
    ]
