"""Reading a part from its file straight into a device's memory: NVIDIA GPUDirect Storage, through kvikio.

Neither host memory nor the link from it is used. The file is the one that every other reader reads: bytes
from offset 0 on, whole pages wherever the part ends (docs/format.md).

kvikio, and cuFile below it, read with POSIX calls and copy when they cannot do better, and neither says so.
So this reader asks both beforehand, and refuses unless both are set to fail instead (`GdsState`). It is
offered once a device record shows that it gives equal bytes; tests/store/test_gds_gpu.py writes the record.
Whoever reads so has to check digests on the device's bytes: they never pass the host.

Source: kvikio 26.10, `CuFile.pread`, "Runtime Settings"; cuFile API reference, "cuFile compatibility mode".
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from endor_jax.arrays import round_up
from endor_jax.errors import MissingDependencyError, UnsupportedError
from endor_jax.store.part import DATA_FILE, PAGE_BYTES, corrupt_part

NAME = "gds"
RECORD = Path(__file__).with_name("device_records") / "gds.json"
HOW = "on a machine with GPUDirect Storage run 'pytest -m gpu tests/store/test_gds_gpu.py', which writes it"


@dataclass(frozen=True)
class GdsState:
    """What kvikio and cuFile say they would do.

    compat_mode: kvikio's: ON never uses cuFile, AUTO uses it unless it fails, OFF always. driver: whether
    nvidia-fs is loaded. may_fall_back: whether cuFile may read with POSIX calls what it cannot read directly.
    """

    kvikio: str
    compat_mode: str
    driver: bool
    may_fall_back: bool

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why reads would not be direct, or might not be."""
        return tuple(
            text
            for text, stands in (
                (f"kvikio's compatibility mode is {self.compat_mode}", self.compat_mode != "OFF"),
                ("the driver nvidia-fs is not loaded", not self.driver),
                ("cuFile may fall back to POSIX reads", self.may_fall_back),
            )
            if stands
        )

    @property
    def active(self) -> bool:
        """Whether every read is direct, or fails."""
        return not self.obstacles


def gds_state() -> GdsState:
    """What kvikio and cuFile are set to now; nothing is read. Raises MissingDependencyError without them."""
    kvikio = _import("kvikio")
    defaults, driver = _import("kvikio.defaults"), _import("kvikio.cufile_driver")
    return GdsState(
        kvikio=kvikio.__version__,
        compat_mode=defaults.get("compat_mode").name,
        driver=driver.get("is_gds_available"),
        may_fall_back=driver.get("allow_compat_mode"),
    )


def check_active(state: GdsState) -> None:
    """Raises UnsupportedError unless every read would be direct, or fail."""
    if not state.active:
        raise UnsupportedError(
            "reader gds",
            got="; ".join(state.obstacles),
            expected="GPUDirect Storage, and nothing in its place",
            fix="load nvidia-fs, and set KVIKIO_COMPAT_MODE=OFF and CUFILE_ALLOW_COMPAT_MODE=false",
        )


def check_record(path: Path = RECORD) -> dict[str, Any]:
    """The device record that shows equal bytes. Raises UnsupportedError if there is none."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        record = None
    if not isinstance(record, dict) or record.get("equal_bytes") is not True:
        raise UnsupportedError(
            "reader gds",
            got="no device record" if record is None else "a device record without equal bytes",
            expected=f"{path.name} that shows equal bytes",
            fix=f"{HOW}, or use another reader",
        )
    return record


def read_to_device(directory: Path, length: int, *, buffer_bytes: int, device: jax.Device) -> jax.Array:  # pyright: ignore[reportInvalidTypeForm]
    """The part in `directory`, `length` bytes long, as a (buffer_bytes / 4,) uint32 array on a CUDA device.

    buffer_bytes: its size class, a multiple of 4096; what follows the part is zero. Returns when it is there.
    Call `check_active` first: without GPUDirect Storage, kvikio may copy, or hang. Files are read with cuFile
    from kvikio's `gds_threshold` on, 16 KiB by default. Raises CorruptCheckpointError for a file that is too
    short, OSError for one that cannot be read.
    """
    kvikio = _import("kvikio")
    words = jax.block_until_ready(jnp.zeros(buffer_bytes // 4, jnp.uint32, device=device))
    size = round_up(length, PAGE_BYTES)  # odd ends of pages would be read with POSIX calls
    path = directory / DATA_FILE
    try:
        with kvikio.CuFile(path, "r") as file:
            count = file.pread(_Memory(words, size), size, 0).get()
    except RuntimeError as error:  # all that kvikio has
        raise OSError(f"{path}: {error}") from error
    if count != size:
        raise corrupt_part(directory, f"{count:,} bytes in {DATA_FILE}", f"{size:,} and more")
    return words


class _Memory:
    """The memory of an array, to be written: JAX's own, so that it comes out of JAX's pool, which is what the
    plan counts. Only for an array that is computed and that nobody else has seen."""

    def __init__(self, words: jax.Array, size_bytes: int):
        assert size_bytes <= words.nbytes
        self.words = words  # alive as long as its memory is written
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (words.unsafe_buffer_pointer(), False),
            "strides": None,
            "version": 3,
        }


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # the last where a CUDA library is missing
        raise MissingDependencyError(
            "reader gds",
            got=f"no kvikio ({error})",
            expected="kvikio and cuFile",
            fix="pip install 'endor_jax[gds]'",
        ) from error
