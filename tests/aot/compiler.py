"""Compiling a jitted function for a GPU that is not there, in a process of its own.

XLA reads its flags once per process, and the tests' own process has other ones. jax 0.10 leaves the PTX of
every kernel in the folder it is told to (Mosaic by a variable of its own); jax 0.11 no longer does, and is
refused.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from tests.aot import machine_code, targets
from tests.aot.cases import Case, program
from tests.aot.machine_code import Kernel

LAUNCHED = re.compile(
    r"\] (?P<name>\w+) grid: \[(?P<grid>[\d, ]+)\] threads: \[(?P<threads>[\d, ]+)\]\s+"
    r"shared_memory: (?P<shared>\d+)"
)
MOSAIC_KERNEL = re.compile(r'"mosaic_gpu_v2".* backend_config=\{kernel_hash = "(.*?)", module')
_mosaic_ptx: dict[str, str] = {}
"""By hash, in the process that compiles: Mosaic compiles what it has compiled before no second time."""
NAMES = {"parameter", "bitcast", "tuple", "get-tuple-element"}
"""Operations of optimised HLO that only give memory a name."""


@dataclass(frozen=True)
class Compiled:
    """kernels: ours; what XLA made (a scatter) is not among them. large_operations: of the optimised program,
    with a result of as many elements as the matrix. seconds: tracing, lowering and compiling."""

    kernels: tuple[Kernel, ...]
    elements_per_thread: int
    large_operations: tuple[str, ...]
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    seconds: float

    @property
    def instructions_per_element(self) -> float:
        """Of the first kernel: of its longest loop where it has one, which is that over the elements wherever
        rows are long; else of all of it."""
        kernel = self.kernels[0]
        return max(kernel.loops, default=kernel.instructions) / self.elements_per_thread


class Compiler:
    """A process that compiles one case after the other; what was compiled is kept."""

    def __init__(self, pool: ProcessPoolExecutor, dump: Path) -> None:
        self._pool, self._dump = pool, dump
        self._compiled: dict[Case, Compiled] = {}

    def compile(self, case: Case) -> Compiled:
        """Raises what compiling raised."""
        if case not in self._compiled:
            self._compiled[case] = self._pool.submit(_compile, case, self._dump).result()
        return self._compiled[case]

    def ptx(self, function: Callable[..., Any], *arguments: Any) -> str:
        """For an H200, the text of the module with our kernel, of a function that has one."""
        return self._pool.submit(_ptx, function, arguments, self._dump).result()


def missing() -> str | None:
    """What is not installed that compiling without a GPU needs; None where nothing is missing."""
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        return "no jax-cuda13-plugin (BUILD.md)"
    if jax.__version_info__ >= (0, 11):
        return "jax 0.11 does not hand out the PTX of a kernel"
    absent = [name for name in ("ptxas", "nvdisasm") if machine_code.tool(name) is None]
    return f"no {' and '.join(absent)} (BUILD.md)" if absent else None


@contextmanager
def compiler() -> Iterator[Compiler]:
    """A compiler, and the end of its process."""
    with TemporaryDirectory(prefix="endor-aot-") as folder:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, initializer=_start, initargs=(folder,)) as pool:
            yield Compiler(pool, Path(folder))


def _start(folder: str) -> None:
    """Before JAX has a backend: nothing is tuned by running it, and what is compiled is left in `folder`."""
    os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 --xla_dump_to={folder}"
    os.environ["MOSAIC_GPU_DUMP_TO"] = folder
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def _compile(case: Case, folder: Path) -> Compiled:
    """In the process that `_start` prepared."""
    began = time.perf_counter()
    wanted = program(case)
    executable = _executable_and_ptx(wanted.function, wanted.arguments, case.capability, folder=folder)
    seconds = time.perf_counter() - began
    memory = executable.memory_analysis()
    found = [each for ptx in sorted(folder.glob("*.ptx")) for each in machine_code.kernels(ptx)]
    launches = {
        launch["name"]: launch for text in _launch_texts(folder) for launch in LAUNCHED.finditer(text)
    }
    kernels = tuple(_launched(each, launches) for each in found if each.name.startswith("endor_"))
    assert kernels, f"{case}: XLA left no kernel of ours among {[each.name for each in found]}"
    return Compiled(
        kernels,
        elements_per_thread=wanted.elements_per_thread,
        large_operations=tuple(large_operations(executable.as_text(), math.prod(case.shape))),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        seconds=seconds,
    )


def _ptx(function: Callable[..., Any], arguments: Any, folder: Path) -> str:
    """In the process that `_start` prepared."""
    _executable_and_ptx(function, arguments, targets.H200, folder=folder)
    (text,) = (ptx for ptx in (path.read_text() for path in folder.glob("*.ptx")) if ".entry endor_" in ptx)
    return text


def _executable_and_ptx(
    function: Callable[..., Any], arguments: Any, capability: str, *, folder: Path
) -> Any:
    """The executable; the folder is left with the PTX of its kernels and nothing of another case."""
    for path in folder.iterdir():
        path.unlink()
    executable = _executable(function, arguments, capability)
    if kernel := MOSAIC_KERNEL.search(executable.as_text()):
        for path in folder.glob("endor_*.ptx"):
            _mosaic_ptx[kernel[1]] = path.read_text()
            path.unlink()
        (folder / "mosaic.ptx").write_text(_mosaic_ptx[kernel[1]])
    return executable


def _executable(function: Any, arguments: Any, capability: str) -> Any:
    from jax.experimental import topologies  # deprecated names are looked up when it is imported

    described = topologies.get_topology_desc(
        platform="cuda", target_config=targets.description(capability), topology="1x1x1"
    )
    mesh = jax.sharding.Mesh(described.devices[:1], ("device",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(
        lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=place), arguments
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(function).lower(*placed).compile()


def _launch_texts(folder: Path) -> list[str]:
    return [path.read_text() for path in folder.glob("*.thunk_sequence.txt")]


def _launched(kernel: Kernel, launches: dict[str, re.Match[str]]) -> Kernel:
    """With how XLA launches it."""
    launch = launches.get(kernel.name)
    if launch is None:
        return kernel
    programs, threads = (math.prod(int(n) for n in launch[each].split(",")) for each in ("grid", "threads"))
    return replace(kernel, programs=programs, threads=threads, shared_bytes=int(launch["shared"]))


def large_operations(text: str, size: int) -> list[str]:
    """The operations of the entry of an optimised HLO module that have a result of at least so many elements;
    a fusion with the last one that it fuses."""
    entry = text[text.index("\nENTRY ") :]
    found = []
    for shape, opcode, rest in _results(entry):
        if opcode in NAMES or math.prod(shape) < size:
            continue
        fused = re.search(r"calls=%?([\w.-]+)", rest)
        found.append(f"{opcode} of {_root(text, fused[1])}" if opcode == "fusion" and fused else opcode)
    return found


def _results(computation: str) -> Iterator[tuple[Sequence[int], str, str]]:
    """Shape, opcode and the rest of the line of every operation with one result."""
    for line in computation.splitlines():
        operation = re.match(r"\s+(?:ROOT )?%?[\w.-]+ = \w+\[([\d,]*)\](?:\{[^}]*\})? ([\w-]+)\((.*)", line)
        if operation:
            yield [int(n) for n in operation[1].split(",") if n], operation[2], operation[3]


def _root(text: str, name: str) -> str:
    found = re.search(rf"^%?{re.escape(name)} .*?^  ROOT .*? ([\w-]+)\(", text, re.DOTALL | re.MULTILINE)
    assert found, f"no computation {name}"
    return found[1]
