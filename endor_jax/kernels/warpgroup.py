"""What a thread of a Mosaic GPU kernel does that jnp does not: read and write by index, shuffle, count bits.

A kernel is written for a *warpgroup*: 4 warps of 32 threads. An array in it is in registers: thread t has the
elements t, t + 128, t + 256, ... of it, so jnp's elementwise operations are a thread's own. The four that are
missing are MLIR here, a line or two each, and a value of `Warpgroup`, so that the tests can run a kernel's
logic with four others.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, nvvm, vector
from jaxtyping import Array, Integer, UInt32

WARP = 32
WARPS = 4
THREADS = WARP * WARPS
STORED_BYTES = 16
"""What one thread writes at once, where it may."""
GLOBAL_MEMORY = 1
"""NVIDIA's number of its address space."""

_inline: Any = plgpu.inline_mgpu
"""By its type it gives back the function it decorates, which takes a context more."""


@dataclass(frozen=True)
class Warpgroup:
    """Arrays are of THREADS elements for each step of a thread.

    numbers(steps): the number of each element, from 0 on. load(places): the words of the part there; every
    place is inside. from_lane(values, lanes): of an array of one step, what thread number `lanes` of the own
    warp has. count_bits(words): how many are 1. store(words, place, left): 16 bytes as four words, from
    element number `place` of the result on, of which only the first `left` elements exist (None: all).
    """

    numbers: Callable[[int], UInt32[Array, " ..."]]
    load: Callable[[Integer[Array, " ..."]], UInt32[Array, " ..."]]
    from_lane: Callable[[UInt32[Array, " ..."], UInt32[Array, " ..."]], UInt32[Array, " ..."]]
    count_bits: Callable[[UInt32[Array, " ..."]], UInt32[Array, " ..."]]
    store: Callable[
        [Sequence[UInt32[Array, " ..."]], UInt32[Array, " ..."], UInt32[Array, " ..."] | None], None
    ]


def warpgroup(words: Any, out: Any, *, row_bytes: int) -> Warpgroup:
    """That of the kernel being traced. words, out: references to the part and to the result in device memory.
    row_bytes: every row of the result begins at a multiple of it, and ends at one."""

    def load(places: Integer[Array, " elements"]) -> UInt32[Array, " elements"]:
        return _load(words, places)

    def store(
        group: Sequence[UInt32[Array, " elements"]],
        place: UInt32[Array, " elements"],
        left: UInt32[Array, " elements"] | None,
    ) -> None:
        _store(out, group, place, left, unit_bytes=math.gcd(STORED_BYTES, row_bytes))

    return Warpgroup(_numbers, load, _from_lane, _count_bits, store)


def _numbers(steps: int) -> UInt32[Array, " elements"]:
    shape = (steps * THREADS,)
    return plgpu.broadcasted_iota(jnp.uint32, shape, 0, layout=_layout(shape))


def _load(words: Any, places: Integer[Array, " elements"]) -> UInt32[Array, " elements"]:
    layout = _layout(places.shape)

    @_inline(arg_types=(plgpu.RefType(), layout), return_type=_words(places.shape))
    def load(_: Any, words: ir.Value, places: mgpu.FragmentedArray) -> mgpu.FragmentedArray:
        memory = _memory(words)
        return _each(lambda place: llvm.load(_integer(32), _element(memory, place, _integer(32))), places)

    return load(words, places)


def _from_lane(
    values: UInt32[Array, " threads"], lanes: UInt32[Array, " elements"]
) -> UInt32[Array, " elements"]:
    layouts = (_layout(values.shape), _layout(lanes.shape))

    @_inline(arg_types=layouts, return_type=_words(lanes.shape))
    def from_lane(_: Any, values: mgpu.FragmentedArray, lanes: mgpu.FragmentedArray) -> mgpu.FragmentedArray:
        (value,) = _scalars(values)
        everyone, whole_warp = mgpu.c(0xFFFF_FFFF, _integer(32)), mgpu.c(WARP - 1, _integer(32))

        def shuffled(lane: ir.Value) -> ir.Value:
            kind = nvvm.ShflKind.idx
            return nvvm.shfl_sync(everyone, value, lane, whole_warp, kind, results=[_integer(32)])

        return _each(shuffled, lanes)

    return from_lane(values, lanes)


def _count_bits(words: UInt32[Array, " elements"]) -> UInt32[Array, " elements"]:
    @_inline(arg_types=(_layout(words.shape),), return_type=_words(words.shape))
    def count_bits(_: Any, words: mgpu.FragmentedArray) -> mgpu.FragmentedArray:
        return _each(llvm.intr_ctpop, words)

    return count_bits(words)


def _store(
    out: Any,
    group: Sequence[UInt32[Array, " elements"]],
    place: UInt32[Array, " elements"],
    left: UInt32[Array, " elements"] | None,
    *,
    unit_bytes: int,
) -> None:
    """In units of so many bytes, each of which lies within a row or beyond its end."""
    layout = _layout(place.shape)
    per_unit = unit_bytes // out.dtype.itemsize
    layouts = ((layout,) * len(group), layout, None if left is None else layout)

    @_inline(arg_types=(plgpu.RefType(), *layouts))
    def store(
        _: Any,
        out: ir.Value,
        group: Sequence[mgpu.FragmentedArray],
        place: mgpu.FragmentedArray,
        left: mgpu.FragmentedArray | None,
    ) -> None:
        memory, element = _memory(out), ir.MemRefType(out.type).element_type
        steps = [[None] * place.registers.size if left is None else _scalars(left), _scalars(place)]
        for rest, first, *words in zip(*steps, *map(_scalars, group), strict=True):
            address = _element(memory, first, element)
            for unit in range(STORED_BYTES // unit_bytes):
                piece, begin = _piece(words, unit, unit_bytes), unit * per_unit
                target = _element(address, mgpu.c(begin, _integer(32)), element)
                exists = None if rest is None else _more(rest, begin)
                with contextlib.nullcontext() if exists is None else mgpu.when(exists):
                    llvm.store(piece, target, alignment=unit_bytes)

    store(out, tuple(group), place, left)


def _piece(words: Sequence[ir.Value], unit: int, unit_bytes: int) -> ir.Value:
    """Bytes unit * unit_bytes and so many more of the 16 that four words are."""
    if unit_bytes == 2:
        shifted = arith.shrui(words[unit // 2], mgpu.c(unit % 2 * 16, _integer(32)))
        return arith.trunci(_integer(16), shifted)
    count = unit_bytes // 4
    piece = words[unit * count : (unit + 1) * count]
    return vector.from_elements(ir.VectorType.get((count,), _integer(32)), piece)


def _more(number: ir.Value, least: int) -> ir.Value:
    return arith.cmpi(arith.CmpIPredicate.ugt, number, mgpu.c(least, _integer(32)))


def _layout(shape: tuple[int, ...]) -> Any:
    return plgpu.Layout.WG_STRIDED(shape, vec_size=1)


def _words(shape: tuple[int, ...]) -> plgpu.ShapeDtypeStruct:
    return plgpu.ShapeDtypeStruct(shape, jnp.dtype(jnp.uint32), _layout(shape))


def _integer(bits: int) -> ir.Type:
    return ir.IntegerType.get_signless(bits)


def _scalars(array: mgpu.FragmentedArray) -> list[ir.Value]:
    """What a thread has of an array, one for each step."""
    return [vector.extract(register, [], [0]) for register in array.registers.flat]


def _each(function: Callable[[ir.Value], ir.Value], array: mgpu.FragmentedArray) -> mgpu.FragmentedArray:
    """A word for every element."""
    kind = ir.VectorType.get((1,), _integer(32))
    found = [vector.from_elements(kind, [function(scalar)]) for scalar in _scalars(array)]
    return mgpu.FragmentedArray(
        _registers=np.array(found, dtype=object), _layout=array.layout, _is_signed=False
    )


def _memory(reference: ir.Value) -> ir.Value:
    """Where an array in device memory begins."""
    return llvm.addrspacecast(llvm.PointerType.get(GLOBAL_MEMORY), mgpu_utils.memref_ptr(reference))


def _element(memory: ir.Value, number: ir.Value, kind: ir.Type) -> ir.Value:
    """Where element `number` lies behind a place in memory; up to 2^31 of them, up to 8 GiB on."""
    return mgpu_utils.getelementptr(memory, [arith.extui(_integer(64), number)], kind)
