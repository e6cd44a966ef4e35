"""A kvikio that writes where it is told to, as the real one does on a device: here the host's memory."""

from __future__ import annotations

import ctypes
import enum
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class CompatMode(enum.Enum):
    OFF, ON, AUTO = range(3)


class Future:
    def __init__(self, count: int):
        self._count = count

    def get(self) -> int:
        return self._count


class CuFile:
    """As much of `kvikio.CuFile` as is used, positional arguments in its order."""

    def __init__(self, file: Path | str, flags: str = "r"):
        if not os.path.exists(file):
            raise RuntimeError("Unable to open file. Linux system/library function call error: No such file")
        self._bytes = Path(file).read_bytes()

    def __enter__(self) -> CuFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._bytes = b""

    def pread(self, buf: Any, size: int | None = None, file_offset: int = 0) -> Future:
        memory = buf.__cuda_array_interface__
        assert memory["typestr"] == "|u1"
        assert memory["strides"] is None
        (room,), (pointer, read_only) = memory["shape"], memory["data"]
        piece = self._bytes[file_offset : file_offset + (room if size is None else size)]
        assert len(piece) <= room
        assert not read_only
        ctypes.memmove(pointer, piece, len(piece))
        return Future(len(piece))


def install(monkeypatch: pytest.MonkeyPatch, *, mode: CompatMode, driver: bool, may_fall_back: bool) -> None:
    """Makes `import kvikio` give this one, set as said."""
    kvikio, defaults, cufile = (ModuleType(f"kvikio{end}") for end in ("", ".defaults", ".cufile_driver"))
    kvikio.__dict__.update(__version__="26.10.00", CuFile=CuFile, CompatMode=CompatMode)
    defaults.__dict__["get"] = {"compat_mode": mode}.__getitem__
    cufile.__dict__["get"] = {"is_gds_available": driver, "allow_compat_mode": may_fall_back}.__getitem__
    for module in (kvikio, defaults, cufile):
        monkeypatch.setitem(sys.modules, module.__name__, module)
