"""The arrays in a file that flax.serialization wrote: found in one pass that reads no array.

The file is one msgpack object: maps by string, in which arrays are extension type 1, whose bytes are again
msgpack: (shape, name of the dtype, bytes in C order). An array above 1 GiB is a map of flat pieces:
{"__msgpack_chunked_array__": true, "shape": {"0": ...}, "chunks": {"0": array, ...}}.

The msgpack library would hold a whole array, and the file with it: this reads headers and skips the rest.
Source: https://github.com/msgpack/msgpack/blob/master/spec.md, flax/serialization.py (`_chunk`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

from endor_jax.arrays import dtype_from_name
from endor_jax.errors import EndorError, InvalidInputError, UnsupportedError
from endor_jax.sources.brief import brief
from endor_jax.sources.byte_range import readable
from endor_jax.sources.safetensors_header import DTYPES, Location
from endor_jax.sources.source import TensorInfo
from endor_jax.sources.stored_tensor import StoredTensor, countable, in_order

MAXIMUM_ARRAYS = 100_000
MAXIMUM_DEPTH = 32
MAXIMUM_NAME_BYTES = 1024
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY = 1  # the extension type

# First byte -> bytes of the length (or of the integer) that follows.
_MAPS = {0xDE: 2, 0xDF: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BINARIES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_UNSIGNED = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_TRUE = 0xC3


def read_arrays(path: Path) -> dict[tuple[str, ...], StoredTensor]:
    """Every array of a file, by the names on the way to it, in the order of the file.

    Raises InvalidInputError for what is not msgpack, or contradicts itself, and UnsupportedError, naming it,
    for anything that is not an array in maps by string.
    """
    where = f"msgpack file {path}"
    with readable(path), path.open("rb") as file:
        scanner = _Scanner(file, path, path.stat().st_size)
        tree = scanner.value(())
        if scanner.position != scanner.size:
            raise scanner.damaged((), got=f"{scanner.size - scanner.position:,} bytes behind the end")
    if not isinstance(tree, dict):
        raise UnsupportedError(
            where, got="no map", expected="parameters by name", fix="save a tree of parameters with flax"
        )
    return dict(_arrays(tree, (), where=where))


@dataclass
class _Scanner:
    """A file and how far it is read; `names` in methods lead to the value that is read."""

    file: BufferedReader
    path: Path
    size: int
    position: int = 0
    arrays: int = 0

    def value(self, names: tuple[str, ...]) -> Any:
        """A map as a dict, an array as a StoredTensor, an unsigned integer, or True."""
        first = self.take(1, names)[0]
        if first <= 0x7F:
            return first
        if first <= 0x8F or first in _MAPS:
            return self.map(first & 0xF if first <= 0x8F else self.number(_MAPS[first], names), names)
        if first in _UNSIGNED:
            return self.number(_UNSIGNED[first], names)
        if first == _TRUE:
            return True
        if first in _EXTENSIONS or first in _FIXED_EXTENSIONS:
            fixed = _FIXED_EXTENSIONS.get(first)
            length = self.number(_EXTENSIONS[first], names) if fixed is None else fixed
            kind = self.take(1, names)[0]
            if kind == _ARRAY:
                return self.array(length, names)
            raise self.unsupported(names, got=f"msgpack extension type {kind}")
        raise self.unsupported(names, got=f"a msgpack value of type 0x{first:02x}")

    def map(self, entries: int, names: tuple[str, ...]) -> dict[str, Any]:
        """The entries of a map, whose header is read."""
        if len(names) >= MAXIMUM_DEPTH:
            raise self.unsupported(names, got=f"maps more than {MAXIMUM_DEPTH} deep")
        found: dict[str, Any] = {}
        for _ in range(entries):
            name = self.text(names)
            if name in found:
                raise self.damaged((*names, name), got="the name twice")
            found[name] = self.value((*names, name))
        return found

    def array(self, length: int, names: tuple[str, ...]) -> StoredTensor:
        """An array of `length` bytes all in all; its data is skipped."""
        self.arrays += 1
        if self.arrays > MAXIMUM_ARRAYS:
            raise self.unsupported(names, got=f"more than {MAXIMUM_ARRAYS:,} arrays")
        end = self.position + length
        if self.take(1, names)[0] != 0x93:
            raise self.damaged(names, got="an array without its three parts")
        shape = self.shape(names)
        dtype = self.text(names)
        if dtype not in DTYPES.values():
            raise self.unsupported(names, got=f"dtype {brief(dtype)}")
        first = self.take(1, names)[0]
        if first not in _BINARIES:
            raise self.damaged(names, got=f"data of msgpack type 0x{first:02x}")
        data_bytes = self.number(_BINARIES[first], names)
        item_bytes = dtype_from_name(dtype).itemsize
        if not countable(shape, item_bytes) or data_bytes != prod(shape) * item_bytes:
            raise self.damaged(names, got=f"{data_bytes:,} bytes for {dtype} {brief(shape)}")
        place = Location(self.path, offset=self.position, length=data_bytes)
        if place.offset + place.length != end:
            raise self.damaged(names, got=f"an array of {length:,} bytes with {data_bytes:,} of data")
        self.skip(data_bytes, names)
        return StoredTensor(TensorInfo(shape, dtype), (place,), in_order(shape))

    def shape(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """A list of unsigned integers."""
        first = self.take(1, names)[0]
        if not 0x90 <= first <= 0x9F and first not in _LISTS:
            raise self.damaged(names, got=f"a shape of msgpack type 0x{first:02x}")
        dimensions = first & 0xF if first <= 0x9F else self.number(_LISTS[first], names)
        sizes: list[int] = []
        for _ in range(dimensions):
            kind = self.take(1, names)[0]
            if kind > 0x7F and kind not in _UNSIGNED:
                raise self.damaged(names, got=f"a size of msgpack type 0x{kind:02x}")
            sizes.append(kind if kind <= 0x7F else self.number(_UNSIGNED[kind], names))
        return tuple(sizes)

    def text(self, names: tuple[str, ...]) -> str:
        """A short string, or the same as bytes."""
        first = self.take(1, names)[0]
        lengths = _STRINGS | {0xC4: 1}
        if not 0xA0 <= first <= 0xBF and first not in lengths:
            raise self.damaged(names, got=f"a name of msgpack type 0x{first:02x}")
        length = first & 0x1F if first <= 0xBF else self.number(lengths[first], names)
        if length > MAXIMUM_NAME_BYTES:
            raise self.damaged(names, got=f"a name of {length:,} bytes")
        try:
            return self.take(length, names).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(names, got="a name that is not UTF-8") from error

    def number(self, size: int, names: tuple[str, ...]) -> int:
        """A big-endian unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size, names), "big")

    def take(self, count: int, names: tuple[str, ...]) -> bytes:
        """The next bytes, of which `count` is small."""
        data = self.file.read(count)
        self.position += len(data)
        if len(data) < count:
            raise self.damaged(names, got=f"the end of the file at byte {self.position:,}")
        return data

    def skip(self, count: int, names: tuple[str, ...]) -> None:
        """Goes over bytes that must be there."""
        if count > self.size - self.position:
            got = f"{self.size - self.position:,} bytes of {count:,}, and the end of the file"
            raise self.damaged(names, got=got)
        self.position += count
        self.file.seek(self.position)

    def damaged(self, names: tuple[str, ...], *, got: str) -> InvalidInputError:
        return InvalidInputError(
            _place(names, f"msgpack file {self.path}"),
            got=got,
            expected="whole msgpack, as flax.serialization writes it",
            fix="the file is damaged or truncated: fetch it again",
        )

    def unsupported(self, names: tuple[str, ...], *, got: str) -> EndorError:
        return _not_an_array(names, got=got, where=f"msgpack file {self.path}")


def _arrays(
    tree: dict[str, Any], names: tuple[str, ...], *, where: str
) -> Iterator[tuple[tuple[str, ...], StoredTensor]]:
    """The arrays below a map, those in pieces put together."""
    for name, value in tree.items():
        below = (*names, name)
        if isinstance(value, StoredTensor):
            yield below, value
        elif not isinstance(value, dict):
            raise _not_an_array(below, got=brief(value), where=where)
        elif _CHUNKED in value:
            yield below, _joined(value, below, where=where)
        else:
            yield from _arrays(value, below, where=where)


def _joined(tree: dict[str, Any], names: tuple[str, ...], *, where: str) -> StoredTensor:
    """An array that was cut into flat pieces."""
    shape, pieces = _listed(tree.get("shape")), _listed(tree.get("chunks"))
    if (
        tree.keys() == {_CHUNKED, "shape", "chunks"}
        and tree[_CHUNKED] is True
        and all(type(size) is int for size in shape or [None])
        and all(isinstance(piece, StoredTensor) and len(piece.info.shape) == 1 for piece in pieces or [None])
        and len({piece.info.dtype for piece in pieces}) == 1
    ):
        info = TensorInfo(tuple(shape), pieces[0].info.dtype)
        item_bytes = dtype_from_name(info.dtype).itemsize
        elements = sum(piece.info.shape[0] for piece in pieces)
        if countable(info.shape, item_bytes) and elements == prod(info.shape):
            ranges = tuple(place for piece in pieces for place in piece.ranges)
            return StoredTensor(info, ranges, in_order(info.shape))
    raise InvalidInputError(
        _place(names, where),
        got="an array in pieces that do not make one",
        expected="a shape, and flat pieces of one dtype with as many elements",
        fix="the file is damaged: fetch it again",
    )


def _listed(tree: Any) -> list[Any]:
    """The values of {"0": ..., "1": ...}; none if it is anything else."""
    if not isinstance(tree, dict) or any(str(index) not in tree for index in range(len(tree))):
        return []
    return [tree[str(index)] for index in range(len(tree))]


def _not_an_array(names: tuple[str, ...], *, got: str, where: str) -> UnsupportedError:
    return UnsupportedError(
        _place(names, where),
        got=got,
        expected="arrays in maps by name, and nothing else",
        fix="save the parameters alone: flax.serialization.to_bytes(params)",
    )


def _place(names: tuple[str, ...], where: str) -> str:
    return f"{brief('/'.join(names))} of {where}" if names else where
