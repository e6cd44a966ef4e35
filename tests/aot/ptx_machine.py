"""Runs PTX without a GPU: NumPy, all threads of all blocks at once. For kernels whose jumps all go forward.

What a kernel of this project needs of PTX, and no more: another instruction raises. Loads and stores outside
of the arguments, or not aligned, raise too. Source: NVIDIA's "Parallel Thread Execution ISA", version 9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

WARP = 32
SPACING = 1 << 40
"""Bytes between the addresses of two arguments; the first is at the first multiple."""
INSTRUCTION = re.compile(r"(?:@(!?)(%p\d+) )?([\w.:]+)\s*(.*)$")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
ADDRESS = re.compile(r"\[(%rd?\d+)(?:\+(-?\d+))?\]")
SHARED, SHARED_BYTES = 1 << 12, 1 << 14
"""Where a block's shared memory begins, and how much it has."""
FLOATS = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}
COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "neg": np.negative,
    "cvta": lambda address: address,
}
NOTHING = {"fence", "bar", "griddepcontrol"}
"""Instructions that wait, for threads or kernels: here all threads do one instruction after the other."""


def run_ptx(text: str, arguments: Sequence[np.ndarray], *, blocks: int, threads: int) -> np.ndarray:
    """Runs the only kernel of a PTX module with pointers to these arguments; how often each byte of the last
    one was written. It alone may be written; it is changed in place."""
    machine = Machine(arguments, blocks, threads)
    machine.run(text)
    return machine.written


class Machine:
    """Registers are arrays with an element per thread: bool, or unsigned of the register's width."""

    def __init__(self, arguments: Sequence[np.ndarray], blocks: int, threads: int) -> None:
        self.memory = [argument.reshape(-1).view(np.uint8) for argument in arguments]
        self.written = np.zeros(len(self.memory[-1]), np.uint8)
        self.thread = np.arange(blocks * threads)
        self.values = {
            "%tid.x": (self.thread % threads).astype(np.uint32),
            "%ctaid.x": (self.thread // threads).astype(np.uint32),
            "global_smem": np.full(blocks * threads, SHARED, np.uint64),
        }
        self.block = self.thread // threads
        self.shared = np.zeros((blocks, SHARED_BYTES), np.uint8)
        self.active = np.ones(blocks * threads, bool)

    def run(self, text: str) -> None:
        body = text[text.index("{", text.index(".entry")) :]
        waiting: dict[str, np.ndarray] = {}  # threads that jumped to a label
        for line in (line.split("//")[0].strip() for line in body.splitlines()[1:]):
            if line.startswith(".reg"):
                self._declare(line)
            elif label := re.match(r"(\$L\w+):", line):
                self.active = self.active | waiting.pop(label[1], False)
            elif line and line[0] not in ".{":
                for statement in line.rstrip(";").split(";"):
                    if self._statement(statement.strip(), waiting):
                        return
        raise AssertionError("no end")

    def _statement(self, statement: str, waiting: dict[str, np.ndarray]) -> bool:
        """Does one; whether it was the end."""
        found = INSTRUCTION.match(statement)
        assert found, statement
        negated, guard, name, operands = found.groups()
        everyone, names = self.active, OPERAND.findall(re.sub(r"\s", "", operands))
        if guard:
            self.active = everyone & (self.values[guard] ^ bool(negated))
        if name == "ret":
            assert not guard
            assert not waiting
            return True
        if name.startswith("bra"):
            waiting[names[0]] = waiting.get(names[0], False) | self.active
            self.active = everyone & ~self.active
        else:
            self._execute(name.split("."), names)
            self.active = everyone
        return False

    def _declare(self, line: str) -> None:
        found = re.fullmatch(r"\.reg \.(\w+)\s+(%[a-z]+)<(\d+)>;", line)
        assert found, line
        for number in range(int(found[3])):
            self.values[f"{found[2]}{number}"] = np.zeros(len(self.thread), _type(found[1]))

    def _execute(self, name: Sequence[str], operands: Sequence[str]) -> None:
        opcode, modifiers = name[0], name[1:]
        if opcode in NOTHING:
            return
        with np.errstate(all="ignore"):
            if opcode in ELEMENTWISE:
                kind = _type(modifiers[-1])
                given = [self._read(operand, kind) for operand in operands[1:]]
                self._write(operands[0], ELEMENTWISE[opcode](*given))
            else:
                getattr(self, f"_{opcode}")(modifiers, operands)

    def _read(self, operand: str, kind: np.dtype) -> np.ndarray:
        """As this type: the low bits of a register that is wider."""
        if operand in self.values:
            value = self.values[operand]
            if value.dtype.itemsize > kind.itemsize:
                value = value.astype(f"uint{8 * kind.itemsize}")
            return value.view(kind)
        number = int(operand[2:], 16) if operand.startswith("0f") else int(operand.rstrip("U"), 0)
        if kind.kind == "b":
            return np.full(len(self.thread), bool(number))
        bits = 8 * kind.itemsize
        return np.full(len(self.thread), number % (1 << bits), f"uint{bits}").view(kind)

    def _write(self, register: str, value: np.ndarray) -> None:
        """Into the register of every thread that is not waiting; extended by zeros."""
        old = self.values[register]
        if value.dtype != bool:
            value = value.view(f"uint{8 * value.dtype.itemsize}")
        assert value.dtype.itemsize <= old.dtype.itemsize, register
        self.values[register] = np.where(self.active, value.astype(old.dtype), old)

    def _mov(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        """Also several registers to a wider one, lowest first, and back; `_` is none."""
        kind = _type(modifiers[-1])
        to, given = (each.strip("{}").replace(" ", "").split(",") for each in operands)
        piece = np.dtype(f"u{kind.itemsize // max(len(to), len(given))}")
        if kind.kind == "b":
            piece = kind
        value = np.stack([self._read(each, kind if len(given) == 1 else piece) for each in given], axis=-1)
        for number, register in enumerate(to):
            if register != "_":
                self._write(register, value.view(piece if len(to) > 1 else kind)[:, number])

    def _popc(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        self._write(operands[0], np.bitwise_count(self._read(operands[1], _type(modifiers[0]))))

    def _shl(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        self._shift(np.left_shift, modifiers, operands)

    def _shr(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        self._shift(np.right_shift, modifiers, operands)

    def _shift(
        self, shift: Callable[..., np.ndarray], modifiers: Sequence[str], operands: Sequence[str]
    ) -> None:
        """By the width or more: all bits go."""
        kind = _type(modifiers[-1])
        value, by = self._read(operands[1], kind), self._read(operands[2], np.dtype(np.uint32))
        most = 8 * kind.itemsize - 1
        shifted = shift(value, np.minimum(by, most).astype(kind))
        self._write(operands[0], shifted if kind.kind == "i" else np.where(by > most, kind.type(0), shifted))

    def _shf(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        direction, mode, _ = modifiers
        assert mode == "wrap"
        low, high, by = (self._read(each, np.dtype(np.uint32)).astype(np.uint64) for each in operands[1:])
        both, by = low | high << np.uint64(32), by & np.uint64(31)
        self._write(
            operands[0],
            (both >> by if direction == "r" else both << by >> np.uint64(32)).astype(np.uint32),
        )

    def _bfe(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        kind = _type(modifiers[0])
        value = self._read(operands[1], kind)
        first, length = (self._read(each, np.dtype(np.uint32)) & 255 for each in operands[2:])
        assert np.all((length > 0) & (first + length <= 32))
        above = 32 - first - length
        self._write(operands[0], value << above.astype(kind) >> (above + first).astype(kind))

    def _prmt(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        """Any four bytes of two words; with bit 3 of its number, a byte's sign eight times."""
        assert list(modifiers) == ["b32"], modifiers
        low, high, selector = (self._read(each, np.dtype(np.uint32)) for each in operands[1:])
        held = np.stack([low, high], axis=-1).view(np.uint8)
        chosen = []
        for place in range(4):
            number = (selector >> np.uint32(4 * place)) & np.uint32(15)
            byte = held[np.arange(len(held)), number & np.uint32(7)]
            signs = (byte.view(np.int8) >> 7).view(np.uint8)
            chosen.append(np.where(number & np.uint32(8), signs, byte))
        self._write(operands[0], np.stack(chosen, axis=-1).view(np.uint32)[:, 0])

    def _mul(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        kind = _type(modifiers[-1])
        # None that flushes subnormals.
        assert modifiers[0] in ("lo", "hi", "wide", "rn", "f32", "f16"), modifiers
        one, other = (self._read(each, kind) for each in operands[1:3])
        if modifiers[0] in ("hi", "wide"):
            kind = np.dtype(f"{kind.kind}{2 * kind.itemsize}")
        product = one.astype(kind) * other.astype(kind)
        if modifiers[0] == "hi":
            product = (product >> kind.type(4 * kind.itemsize)).astype(f"{kind.kind}{kind.itemsize // 2}")
        self._write(operands[0], product + self._read(operands[3], kind) if operands[3:] else product)

    def _mad(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        assert modifiers[0] in ("lo", "wide"), modifiers
        self._mul(modifiers, operands)

    def _setp(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        comparison, kind = modifiers
        given = (self._read(each, _type(kind)) for each in operands[1:])
        self._write(operands[0], COMPARISONS[comparison](*given))

    def _selp(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        one, other = (self._read(each, _type(modifiers[0])) for each in operands[1:3])
        self._write(operands[0], np.where(self._read(operands[3], np.dtype(bool)), one, other))

    def _cvt(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        *how, to, kind = modifiers
        assert how in ([], ["rn"]), modifiers
        if to == "bf16x2":
            high, low = (self._read(each, _type(kind)).astype(FLOATS["bf16"]) for each in operands[1:])
            self._write(operands[0], np.stack([low, high], axis=-1).view(np.uint32)[:, 0])
        elif to == "f16x2":
            high, low = (self._read(each, _type(kind)).astype(FLOATS["f16"]) for each in operands[1:])
            self._write(operands[0], np.stack([low, high], axis=-1).view(np.uint32)[:, 0])
        else:
            value = self._read(operands[1], _type(kind)).astype(_type(to))
            self._write(operands[0], value.astype(np.int32) if value.dtype.kind == "i" else value)

    def _elect(self, _: Sequence[str], operands: Sequence[str]) -> None:
        lane, elected = operands[0].split("|")
        self._write(lane, np.zeros(len(self.thread), np.uint32))
        self._write(elected, self.thread % WARP == 0)

    def _shfl(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        _, mode, _ = modifiers
        assert operands[3:] == (["0", "-1"] if mode == "up" else ["31", "-1"]), operands
        assert self.active.all()
        value, by = (self._read(each, np.dtype(np.uint32)) for each in operands[1:3])
        assert by.max() < WARP
        lane = (self.thread % WARP).astype(np.uint32)
        source = {"idx": by, "bfly": lane ^ by, "up": np.where(by > lane, lane, lane - by)}[mode]
        self._write(operands[0], value[self.thread // WARP * WARP + source])

    def _stmatrix(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        """Four matrices of 8 x 8 halves: lane 4r + c // 2 has (r, c) and (r, c + 1) of each, lane 8i + r the
        address of row r of matrix i."""
        assert list(modifiers[:4]) == ["sync", "aligned", "m8n8", "x4"], modifiers
        assert self.active.all()
        registers = operands[1].strip("{}").split(",")
        held = np.stack([self._read(each, np.dtype(np.uint32)) for each in registers])
        matrices = held.reshape(4, -1, 8, 4).view(np.uint16)  # matrix, warp, row, column
        if "trans" in modifiers:
            matrices = matrices.swapaxes(2, 3)
        rows = np.ascontiguousarray(matrices.transpose(1, 0, 2, 3)).reshape(-1, 8).view(np.uint8)
        self._store_shared(operands[0], rows)

    def _ldmatrix(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        """What `stmatrix` stores, back."""
        assert list(modifiers[:4]) == ["sync", "aligned", "m8n8", "x4"], modifiers
        assert self.active.all()
        rows = self._load_shared(operands[1], 16).view(np.uint16)
        matrices = rows.reshape(-1, 4, 8, 8).transpose(1, 0, 2, 3)
        if "trans" in modifiers:
            matrices = matrices.swapaxes(2, 3)
        held = np.ascontiguousarray(matrices).view(np.uint32).reshape(4, -1)
        for register, value in zip(operands[0].strip("{}").split(","), held, strict=True):
            self._write(register, value)

    def _load_shared(self, operand: str, size: int) -> np.ndarray:
        index = self._shared_place(operand, size)[:, None] + np.arange(size)
        return self.shared[self.block[self.active, None], index]

    def _store_shared(self, operand: str, stored: np.ndarray) -> None:
        place = self._shared_place(operand, stored.shape[1])
        self.shared[self.block[self.active, None], place[:, None] + np.arange(stored.shape[1])] = stored

    def _shared_place(self, operand: str, size: int) -> np.ndarray:
        """Which byte of its block's shared memory, for every thread that is not waiting."""
        found = ADDRESS.fullmatch(operand)
        assert found, operand
        kind = np.dtype(np.int64 if found[1].startswith("%rd") else np.int32)
        place = self._read(found[1], kind)[self.active].astype(np.int64) + int(found[2] or 0) - SHARED
        assert np.all((place >= 0) & (place + size <= SHARED_BYTES)), "outside"
        assert not np.any(place % size), "not aligned"
        return place

    def _ld(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        size = int(modifiers[-1][1:]) // 8
        if modifiers[0] == "param":
            number = int(operands[1].strip("[]").rsplit("_", 1)[1])
            self._write(operands[0], np.full(len(self.thread), (number + 1) * SPACING, np.uint64))
            return
        registers = operands[0].strip("{}").split(",")
        size *= len(registers)
        loaded = np.zeros((len(self.thread), size), np.uint8)
        if modifiers[0] == "shared":
            loaded[self.active] = self._load_shared(operands[1], size)
        else:
            assert modifiers[0] == "global", modifiers
            argument, place = self._place(operands[1], size)
            loaded[self.active] = self.memory[argument][place[:, None] + np.arange(size)]
        words = loaded.view(f"uint{8 * size // len(registers)}")
        for number, register in enumerate(registers):
            self._write(register, words[:, number])

    def _st(self, modifiers: Sequence[str], operands: Sequence[str]) -> None:
        kind = _type(modifiers[-1])
        words = [self._read(each.strip(), kind)[self.active] for each in operands[1].strip("{}").split(",")]
        stored = np.stack(words, axis=-1).view(np.uint8)
        if modifiers[0] == "shared":
            self._store_shared(operands[0], stored)
            return
        assert modifiers[0] == "global", modifiers
        argument, place = self._place(operands[0], stored.shape[1])
        assert argument == len(self.memory) - 1
        index = place[:, None] + np.arange(stored.shape[1])
        self.memory[argument][index] = stored
        np.add.at(self.written, index, 1)

    def _place(self, operand: str, size: int) -> tuple[int, np.ndarray]:
        """Which argument, and which byte of it, for every thread that is not waiting."""
        found = ADDRESS.fullmatch(operand)
        assert found, operand
        address = self._read(found[1], np.dtype(np.int64))[self.active] + int(found[2] or 0)
        argument = len(self.memory) - 1 if not len(address) else int(address[0] // SPACING) - 1
        place = address - (argument + 1) * SPACING
        assert np.all((place >= 0) & (place + size <= len(self.memory[argument]))), "outside"
        assert not np.any(place % size), "not aligned"
        return argument, place


def _type(name: str) -> np.dtype:
    """NumPy's for one of PTX."""
    if name == "pred":
        return np.dtype(bool)
    if name in FLOATS:
        return np.dtype(FLOATS[name])
    return np.dtype(f"{'i' if name[0] == 's' else 'u'}{int(name[1:]) // 8}")
