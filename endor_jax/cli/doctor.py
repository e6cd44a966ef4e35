"""`endor doctor`: what this machine offers, and what is missing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from endor_jax.cli.console import Json, Output, Quiet, Verbose
from endor_jax.location import local_path

if TYPE_CHECKING:
    from endor_jax.store.disk_rates import Rates
    from endor_jax.store.reader_choice import Choice

PACKAGES = ("jax", "jaxlib", "flax", "tensorstore", "orbax-checkpoint", "numpy", "tokenizers", "safetensors")
EXTRAS = {"gguf": "gguf", "cuda": "jax_cuda13_plugin", "gds": "kvikio", "plot": "matplotlib"}
"""Extra -> a module that it brings."""
SAMPLE_BYTES = 64 * 2**20
"""Of the file that is written for a moment, to measure the disk of the current directory."""

DOCTOR = "doctor, which measures disks, of"


def command(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="DST", help="A checkpoint, to measure the disk it is on.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Report versions, devices, kernels, memory, and rates of this machine and its disk, measured anew."""
    output = Output(as_json, quiet, verbose)
    if checkpoint is not None:
        local_path(checkpoint, DOCTOR)  # before anything else is measured
    values = examine()
    disk = examine_disk() if checkpoint is None else examine_checkpoint(checkpoint)
    rates = examine_rates()
    if as_json:
        output.json(values | {"rates": rates, "disk": disk})
        return
    values["rates"] = _rate_lines(rates)
    values["disk"] = _disk_lines(disk)
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

    from endor_jax import native
    from endor_jax.errors import UnsupportedError
    from endor_jax.kernels.backends import resolve
    from endor_jax.kernels.place import place_at
    from endor_jax.memory import free_host_bytes
    from endor_jax.streaming.sizes import format_size
    from endor_jax.version import VERSION

    devices = jax.local_devices()
    instruction_sets: tuple[str, ...] = ()
    with contextlib.suppress(UnsupportedError):  # `compiled_kernels` says what is wrong with them
        instruction_sets = native.instruction_sets()
    return {
        "endor_jax": VERSION,
        "python": platform.python_version(),
        "packages": [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES],
        "extras": [
            f"{extra}: {'installed' if importlib.util.find_spec(module) else 'not installed'}"
            for extra, module in EXTRAS.items()
        ],
        "devices": [f"{device.device_kind} ({device.platform} {device.id})" for device in devices],
        "expand": [
            f"{device.platform}: {resolve(None, place_at(device, instruction_sets))}" for device in devices
        ],
        "compiled_kernels": _compiled_kernels(),
        "free_host_memory": format_size(free_host_bytes()),
    }


def _compiled_kernels() -> str:
    """The instruction sets that they have and this processor too, best first; or why there are none."""
    from endor_jax import native
    from endor_jax.errors import EndorError

    if native.available():
        try:
            return ", ".join(native.instruction_sets())
        except EndorError as error:
            return f"built, but {error}"
    return (
        "not built: no C++ compiler when endor_jax was installed, or it failed; XLA serves. "
        "To build them: install g++ or clang++, then endor_jax again with pip's --no-cache-dir -v"
    )


def examine_rates() -> dict[str, Any]:
    """What the first device and its link do per second, measured anew; what else predictions take is
    forgotten, and measured with the next load.

    linear: of a product of one row in bfloat16 with a half-pruned matrix in packed:2. expand: dense bytes of
    the same. link: the way to the device that is taken, and its rates from the ring and from host memory,
    None where device and host are one memory.
    """
    from endor_jax.streaming.budget import default_device
    from endor_jax.streaming.link import choose_link
    from endor_jax.streaming.measure import copy_rate, expand_rate, product_curve
    from endor_jax.streaming.rates import Product, forget_rates

    device, dtype = default_device(), "bfloat16"
    forget_rates(device)
    link = choose_link(device, anew=True)
    product = Product("packed:2", dtype, dtype, dtype, rows=1)
    return {
        "linear_weights_per_second": product_curve(product, device).per_second,
        "expand_bytes_per_second": expand_rate("packed:2", dtype, device),
        "copy_bytes_per_second": copy_rate(device),
        "link": link.ring if link.ring == link.kept else f"{link.ring}, from host memory {link.kept}",
        "link_why": link.why,
        "link_bytes_per_second": link.ring_bytes_per_second,
        "link_kept_bytes_per_second": link.kept_bytes_per_second,
    }


def examine_checkpoint(path: str) -> dict[str, Any]:
    """How fast the parts of a checkpoint are read, measured anew, and which reader it is opened with."""
    from endor_jax.store.direct import READERS
    from endor_jax.store.disk_rates import disk_of, keep, measure
    from endor_jax.store.part import DATA_FILE
    from endor_jax.store.reader import Checkpoint

    root = local_path(path, DOCTOR)
    with Checkpoint(path, reader="preadv") as opened:  # checks that there is something to measure
        parts = [(root / part.path, part.length_bytes) for part in opened.manifest.parts]
    rates = measure(parts, READERS)
    if parts:
        lengths = [length for _, length in parts]
        keep(disk_of(parts[0][0] / DATA_FILE, lengths), {reader: rates.get(reader) for reader in READERS})
    with Checkpoint(path) as opened:
        return {"path": path, "rates": _rate_values(rates)} | _chosen(opened.reader_choice)


def _chosen(choice: Choice) -> dict[str, Any]:
    return {"reader": choice.reader, "why": choice.why, "reads": choice.reads}


def examine_disk() -> dict[str, Any]:
    """The same for the disk of the current directory, with a file that is written and removed."""
    import numpy as np

    from endor_jax.errors import EndorError
    from endor_jax.store.direct import READERS
    from endor_jax.store.disk_rates import disk_of, keep, measure
    from endor_jax.store.part import write_part
    from endor_jax.store.reader_choice import choose

    where = os.getcwd()
    try:
        with tempfile.TemporaryDirectory(dir=where, prefix=".endor-doctor-") as temporary:
            part = Path(temporary) / "part"
            write_part(part, np.frombuffer(np.random.default_rng(0).bytes(SAMPLE_BYTES), np.uint8))
            rates = measure([(part, SAMPLE_BYTES)], READERS)
            disk = disk_of(part, [SAMPLE_BYTES])
    except (OSError, EndorError) as error:  # a directory that cannot be written, a full disk
        why = f"not measured: {error}"
        return {"path": where, "rates": {}, "reader": None, "why": why, "reads": None}
    keep(disk, {reader: rates.get(reader) for reader in READERS})
    fits = choose(rates, read_bytes=0, cache_bytes=1)
    exceeds = choose(rates, read_bytes=1, cache_bytes=0)
    reader = fits.reader if fits.reader == exceeds.reader else f"{fits.reader} or {exceeds.reader}"
    why = f"what the page cache can hold: {fits.reader}, {fits.why}; else {exceeds.reader}, {exceeds.why}"
    return {
        "path": where,
        "rates": _rate_values(rates),
        "reader": reader,
        "why": why,
        "reads": max(fits.reads, exceeds.reads),
    }


def _rate_values(rates: Mapping[str, Rates]) -> dict[str, dict[str, Any]]:
    return {
        reader: {
            "cold_bytes_per_second": rate.cold,
            "warm_bytes_per_second": rate.warm,
            "by_reads": {
                str(reads): {
                    "cold_bytes_per_second": rate.cold_by_reads[reads].bytes_per_second,
                    "warm_bytes_per_second": rate.warm_by_reads[reads].bytes_per_second,
                }
                for reads in rate.cold_by_reads
            },
        }
        for reader, rate in rates.items()
    }


def _rate_lines(rates: Mapping[str, Any]) -> list[str]:
    linear = rates["linear_weights_per_second"]
    lines = [f"linear: {linear / 1e9:.1f} billion weights/s (packed:2, bfloat16, one row)"]
    for name, what in (("expand", "dense bytes of the same"), ("copy", "in host memory, one thread")):
        lines.append(f"{name}: {rates[f'{name}_bytes_per_second'] / 1e9:.1f} GB/s ({what})")
    ring, kept = rates["link_bytes_per_second"], rates["link_kept_bytes_per_second"]
    fast = "" if ring is None else f", {ring / 1e9:.1f} GB/s from the ring, {kept / 1e9:.1f} from host memory"
    return [*lines, f"link: {rates['link']}{fast} ({rates['link_why']})"]


def _disk_lines(disk: dict[str, Any]) -> list[str]:
    from endor_jax.store.direct import READERS
    from endor_jax.store.disk_rates import IN_FLIGHT

    lines = [disk["path"]]
    for reader in READERS if disk["rates"] else ():
        rate = disk["rates"].get(reader)
        if rate is None:
            lines.append(f"{reader}: refused by the file system")
            continue
        each = {
            state: "/".join(
                f"{by[f'{state}_bytes_per_second'] / 1e9:.2f}" for by in rate["by_reads"].values()
            )
            for state in ("cold", "warm")
        }
        lines.append(f"{reader}: {each['cold']} GB/s cold, {each['warm']} GB/s warm")
    if disk["rates"]:
        lines.append(f"(with {'/'.join(map(str, IN_FLIGHT))} reads in flight)")
    return [*lines, f"reader: {disk['reader'] or 'none chosen'} ({disk['why']})"]
