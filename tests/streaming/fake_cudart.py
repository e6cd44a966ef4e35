"""A libcudart of our own, compiled for the tests, and what was called in it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from endor_jax.streaming.cuda_runtime import CudaRuntime, load_runtime

SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class Call:
    """One call: its pointer, size and the number that came with it, zero where it has none."""

    name: str
    pointer: int
    size: int
    number: int


class FakeCuda:
    """The runtime, the calls so far, and a way to make it fail."""

    def __init__(self, path: Path):
        self.runtime: CudaRuntime = load_runtime(str(path))
        self._library = ctypes.CDLL(str(path))
        self._library.fake_calls.restype = ctypes.c_char_p
        self._library.fake_reset()

    @property
    def calls(self) -> list[Call]:
        lines = self._library.fake_calls().decode().splitlines()
        return [Call(name, *map(int, numbers)) for name, *numbers in map(str.split, lines)]

    def of(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def fail(self, name: str, *, code: int = 2, after: int = 0) -> None:
        """Lets the function succeed that often, then return the code."""
        self._library.fake_fail(name.encode(), code, after)


def compile_fake_cudart(directory: Path) -> Path:
    """The path of the library; skips the test where there is no C compiler."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    path = directory / "libcudart.so.13"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, SOURCE], check=True)
    return path
