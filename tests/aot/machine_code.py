"""What a kernel became: figures from PTX by NVIDIA's assembler and disassembler, which need no GPU."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LABEL = re.compile(r"^(\.L\w+):")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
GUARD = re.compile(r"^@!?U?P[T\d]+ ")
LOADS = ("LDG", "LD")
STORES = ("STG", "ST")


@dataclass(frozen=True)
class Kernel:
    """instructions: without padding. loops: instructions of each innermost loop. opcodes: how many of each,
    without what follows the first dot. loads, stores: how many, by bits per thread; of device memory only.
    programs, threads, shared_bytes: as launched, None where XLA does not say."""

    name: str
    target: str
    registers: int
    spill_bytes: int
    instructions: int
    loops: tuple[int, ...]
    opcodes: Mapping[str, int]
    loads: Mapping[str, int]
    stores: Mapping[str, int]
    programs: int | None = None
    threads: int | None = None
    shared_bytes: int | None = None


def tool(name: str) -> str | None:
    """The path of `ptxas` or `nvdisasm`: from NVIDIA's wheels, else from PATH."""
    found = importlib.util.find_spec("nvidia")
    for place in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(place).glob(f"*/bin/{name}")):
            return str(path)
    return shutil.which(name)


def tool_version(name: str) -> str:
    """Its last line but one says "Cuda compilation tools, release 13.0, V13.0.88"."""
    found = re.search(r"V(\d[\d.]+)", _said([name, "--version"]))
    assert found, f"{name} --version says no version"
    return found[1]


def kernels(ptx: Path) -> list[Kernel]:
    """The kernels of a .ptx file. A file beside it, of its name and `.cubin`, is written."""
    text = ptx.read_text()
    names = re.findall(r"\.entry (\w+)", text)
    target = re.search(r"\.target (\w+)", text)
    if not names or not target:
        return []
    cubin = ptx.with_name(ptx.name + ".cubin")
    verbose = _said(["ptxas", "--verbose", f"--gpu-name={target[1]}", str(ptx), f"--output-file={cubin}"])
    code = _said(["nvdisasm", "--print-code", str(cubin)])
    return [kernel(name, target[1], verbose=verbose, code=code) for name in names]


def kernel(name: str, target: str, *, verbose: str, code: str) -> Kernel:
    """Of the kernel of this name, from what `ptxas --verbose` and `nvdisasm --print-code` said."""
    said = verbose.split(f"Compiling entry function '{name}'")[1].split("Compiling entry function")[0]
    used = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert used, said
    assert spilled, said
    section = re.search(rf"^\.text\.{name}:\n(.*?)(?=^//-----|\Z)", code, re.DOTALL | re.MULTILINE)
    assert section, f"no code of {name}"
    instructions, loops = _counted(section[1].splitlines())
    opcodes = [each.split()[0] for each in instructions]
    return Kernel(
        name,
        target,
        registers=int(used[1]),
        spill_bytes=int(spilled[1]) + int(spilled[2]),
        instructions=len(instructions),
        loops=loops,
        opcodes=dict(Counter(opcode.split(".")[0] for opcode in opcodes).most_common()),
        loads=_widths(opcodes, LOADS),
        stores=_widths(opcodes, STORES),
    )


def _counted(lines: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
    """The instructions without guards and padding, and the lengths of the innermost loops. Code ends in NOPs
    and a jump to itself, never reached."""
    found: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, int]] = []  # from the first instruction of a loop to behind its last
    for line in lines:
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        instruction = INSTRUCTION.match(line)
        if instruction is None:
            continue
        text = GUARD.sub("", instruction[1])
        if text.startswith("NOP"):
            continue
        back = re.match(r"BRA\b.*`\((\.L\w+)\)", text)
        if back and back[1] in labels:
            if labels[back[1]] == len(found):
                continue
            jumps.append((labels[back[1]], len(found) + 1))
        found.append(text)
    innermost = [
        (first, behind)
        for first, behind in jumps
        if not any(first <= a and b <= behind and (a, b) != (first, behind) for a, b in jumps)
    ]
    return found, tuple(behind - first for first, behind in innermost)


def _widths(opcodes: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    bits = []
    for head, *modifiers in (opcode.split(".") for opcode in opcodes):
        if head in wanted:
            sizes = [re.fullmatch(r"[US]?(8|16|64|128|256)", each) for each in modifiers]
            bits.append(next((size[1] for size in sizes if size), "32"))
    return dict(Counter(bits).most_common())


def _said(command: Sequence[str]) -> str:
    path = tool(command[0])
    assert path, f"{command[0]} is not installed"
    done = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout + done.stderr
