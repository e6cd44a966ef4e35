"""Builds the compiled kernels where there is a C++ compiler; without one the package installs all the same.

All sources in endor_jax/kernels/native/ become one shared library, `endor_jax/_native.abi3.so`, that knows
nothing of Python: one serves every version from 3.11 on. Everything else is configured in pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NATIVE = Path("endor_jax/kernels/native")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread")
"""For every source. No -march: what runs anywhere must be compiled for any processor."""
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mpopcnt")
AVX512 = (
    *AVX2,
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vbmi", "-mavx512vbmi2", "-mavx512bf16"),
)
FLAGS_BY_SUFFIX = {"_avx2": AVX2, "_avx512": AVX512}
"""End of a source's name -> flags it is compiled with besides, on x86-64. The functions in such a source are
called after asking the processor (instruction_sets.cc)."""
CONSEQUENCE = "endor_jax works without its compiled kernels: XLA serves in their place, slower on a CPU"


def main() -> None:
    """What `pip` runs."""
    kernels = Extension(
        "endor_jax._native",
        sources=[str(path) for path in sources()],
        depends=[str(path) for path in sorted(NATIVE.glob("*.h"))],
        py_limited_api=True,
        optional=True,
    )
    setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel})


def sources() -> list[Path]:
    """The C++ sources, those that take longest to compile first."""
    return sorted(NATIVE.glob("*.cc"), key=lambda path: (-path.stat().st_size, path.name))


def compiler() -> list[str]:
    """$CXX, or the first compiler that is installed. Raises CompileError if there is none."""
    if sys.platform == "win32":
        raise CompileError("the kernels are written for GCC and Clang, and are not built on Windows")
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise CompileError("there is no C++ compiler: no g++, clang++ or c++ in the path, and CXX is not set")


def xla_headers() -> Path:
    """Where jaxlib keeps the headers of XLA's custom calls. Raises CompileError if it is not installed."""
    found = importlib.util.find_spec("jaxlib")
    headers = Path(found.origin).parent / "include" if found and found.origin else None
    if headers is None or not (headers / "xla" / "ffi" / "api" / "ffi.h").is_file():
        raise CompileError("jaxlib, which has XLA's headers, is not installed")
    return headers


def flags_of(source: Path, machine: str) -> tuple[str, ...]:
    """The flags a source is compiled with for a processor, without those that say where headers are."""
    suffixes = [suffix for suffix in FLAGS_BY_SUFFIX if source.stem.endswith(suffix)]
    special = FLAGS_BY_SUFFIX[suffixes[0]] if suffixes and machine in ("x86_64", "AMD64") else ()
    return (*FLAGS, *special)


def compile_objects(
    command: Sequence[str], paths: Sequence[Path], *, machine: str, folder: Path, more: Sequence[str] = ()
) -> list[Path]:
    """Compiles every source into `folder`, as many at a time as there are processors.

    command: the compiler; more: flags that come after all others. Raises CompileError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    objects = [folder / f"{path.stem}.o" for path in paths]

    def build(path: Path, made: Path) -> None:
        run([*command, *flags_of(path, machine), *more, "-c", str(path), "-o", str(made)])

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(build, paths, objects))
    return objects


def run(command: Sequence[str]) -> None:
    """Raises CompileError with the end of what the command printed, if it fails or cannot be started."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise CompileError(f"cannot start {shlex.join(command)}: {error}") from error
    if done.returncode:
        raise CompileError(f"{shlex.join(command)} failed:\n{done.stdout[-4000:]}")


class BuildKernels(build_ext):
    """Compiles each source with flags of its own. The extension is optional: a failure becomes a warning."""

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        # What an earlier build left is of other sources: it must not pass for this one's result.
        in_place = Path("endor_jax", library.name).resolve()
        for stale in (library, in_place) if self.editable_mode else (library,):
            stale.unlink(missing_ok=True)
        try:
            self._build(library)
        except CompileError as error:
            raise CompileError(
                f"{error}\nwarning: {CONSEQUENCE}. With g++ or clang++, install it again"
            ) from error

    def _build(self, library: Path) -> None:
        command, folder = compiler(), Path(self.build_temp, "native")
        more = [*shlex.split(os.environ.get("CXXFLAGS", "")), "-isystem", str(xla_headers())]
        objects = compile_objects(command, sources(), machine=platform.machine(), folder=folder, more=more)
        library.parent.mkdir(parents=True, exist_ok=True)
        shared = ["-shared", "-pthread", *shlex.split(os.environ.get("LDFLAGS", ""))]
        run([*command, *map(str, objects), *shared, "-o", str(library)])


class Wheel(bdist_wheel):
    """Tags the wheel by what is in it: the library serves CPython 3.11 and later; without it, any machine."""

    def get_tag(self) -> tuple[str, str, str]:
        assert self.bdist_dir is not None
        if not list(Path(self.bdist_dir, "endor_jax").glob("_native.*")):
            return "py3", "none", "any"
        # Compiled for this machine, also where Python is for two.
        machine = sysconfig.get_platform().replace("universal2", platform.machine())
        return "cp311", "abi3", machine.replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    main()
