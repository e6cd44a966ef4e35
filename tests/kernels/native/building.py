"""driver.cc and the kernels compiled as setup.py does, but with sanitizers; and what is in an object.

ENDOR_TEST_KERNEL_DAMAGES says how often the driver damages every part; the default is for every day.
"""

from __future__ import annotations

import os
import runpy
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DAMAGES = int(os.environ.get("ENDOR_TEST_KERNEL_DAMAGES", "10"))
ROOT = Path(__file__).parents[3]
SETUP = runpy.run_path(str(ROOT / "setup.py"))
NATIVE = ROOT / SETUP["NATIVE"]
# -O0 compiles three times as fast as -O1, and what the sanitizers watch is the same. It comes after the -O3
# of setup.py and takes its place.
SANITIZED = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@dataclass(frozen=True)
class Driver:
    """The driver's program, how to start it, and the objects it was linked from, by name."""

    command: tuple[str, ...]
    objects: dict[str, Path]

    def __call__(self, *arguments: object) -> str:
        """What it prints. Raises AssertionError with its complaints if it fails."""
        # The search for leaks traces the process, which an emulator cannot.
        environment = os.environ | ({"ASAN_OPTIONS": "detect_leaks=0"} if len(self.command) > 1 else {})
        command = [*self.command, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout


def build(folder: Path, *, compiler: Sequence[str], machine: str, emulator: Sequence[str] = ()) -> Driver:
    """Compiles everything but the handlers, which need XLA, into `folder`."""
    sources = [path for path in NATIVE.glob("*.cc") if path.name != "ffi_handlers.cc"]
    sources.sort(key=lambda path: path.stat().st_size, reverse=True)
    sources.append(Path(__file__).with_name("driver.cc"))
    objects = SETUP["compile_objects"](
        compiler, sources, machine=machine, folder=folder, more=[*SANITIZED, "-iquote", str(NATIVE)]
    )
    program = folder / "driver"
    SETUP["run"]([*compiler, *map(str, objects), *SANITIZED, "-pthread", "-o", str(program)])
    return Driver((*emulator, str(program)), {path.stem: path for path in objects})


def weak_functions(compiled: Path) -> list[str]:
    """Names of the functions in an object of which the linker keeps one for all objects."""
    listed = subprocess.run(["nm", "--demangle", str(compiled)], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [words[2] for words in lines if len(words) == 3 and words[1] == "W"]
