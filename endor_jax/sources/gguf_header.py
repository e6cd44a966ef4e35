"""The header of a GGUF file: metadata and the table of tensors, every read checked against the file's end.

Format: magic "GGUF", version, tensor count, metadata count; then metadata (key, type, value), then tensors
(name, dimensions fastest first, ggml type, offset from the start of the data); the data starts at the next
multiple of `general.alignment`.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

It is parsed here and not with the gguf package's reader because that one keeps an array per token (2 s for
a vocabulary of 49,152) and reports a truncated file as whatever NumPy stumbles over.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from endor_jax.arrays import round_up
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.sources.brief import brief
from endor_jax.sources.byte_range import readable

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # version 1 counted in 32 bits; no file in the wild still does
_SCALARS = {
    0: "u1",
    1: "i1",
    2: "u2",
    3: "i2",
    4: "u4",
    5: "i4",
    6: "f4",
    7: "?",
    10: "u8",
    11: "i8",
    12: "f8",
}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_MAXIMUM_DIMENSIONS = 4  # ggml's own limit
# Headers are vocabularies: 300,000 tokens with merges and scores make 15 MB. A list item costs Python 8 bytes
# and more, so a file must not be able to ask for as many as it has bytes.
_MAXIMUM_HEADER_BYTES = 100_000_000
_MAXIMUM_ITEMS = 4_000_000


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table: `shape` slowest dimension first, `offset` from the start of the file.

    No dimension is 0; type and offset are as the file has them, which its reader checks.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its data, which begins at `data_start`; tensors as the table has them."""

    path: Path
    size: int
    data_start: int
    alignment: int
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False)


def parse_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a little-endian GGUF file, version 2 or 3.

    Metadata values are int, float, bool, str or lists of them. Raises InvalidInputError if it is not a GGUF
    file or is damaged, UnsupportedError for other versions, byte orders and multi-file checkpoints.
    """
    with readable(path), path.open("rb") as file:
        size = path.stat().st_size
        if file.read(4) != MAGIC:
            raise InvalidInputError(
                str(path), got="a file without the GGUF magic", expected="a GGUF file", fix="check the path"
            )
        return _parse(path, _Cursor(file, path, position=4, end=min(size, _MAXIMUM_HEADER_BYTES)), size=size)


def _parse(path: Path, cursor: _Cursor, *, size: int) -> GgufHeader:
    version = int(cursor.scalar("u4"))
    if version not in _VERSIONS:
        raise UnsupportedError(
            str(path),
            got=f"GGUF version {version}" if version & 0xFFFF else "a big-endian GGUF file",
            expected="little-endian version 2 or 3",
            fix="convert it again with a current llama.cpp",
        )
    tensor_count, metadata_count = int(cursor.scalar("u8")), int(cursor.scalar("u8"))
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key, value = cursor.metadata_entry()
        if key in metadata:
            raise cursor.damaged(f"key {brief(key)} twice", expected="each key once")
        metadata[key] = value
    if (files := metadata.get("split.count", 1)) not in (0, 1):
        raise UnsupportedError(
            str(path),
            got=f"one of {brief(files)} files of a checkpoint",
            expected="a single file",
            fix="join them with llama.cpp's `llama-gguf-split --merge`",
        )
    rows: dict[str, GgufTensor] = {}
    for _ in range(tensor_count):
        row = cursor.tensor_entry()
        if row.name in rows:
            raise cursor.damaged(f"tensor {brief(row.name)} twice", expected="each name once")
        rows[row.name] = row
    alignment = metadata.get("general.alignment", 32)
    start = round_up(cursor.position, alignment)
    tensors = {name: replace(row, offset=start + row.offset) for name, row in rows.items()}
    return GgufHeader(path, size, start, alignment, metadata=metadata, tensors=tensors)


class _Cursor:
    """A position in the file that never runs past `end`. The file is read, not mapped: should it shrink
    meanwhile, that is an error, and no signal that ends the process."""

    def __init__(self, file: BufferedReader, path: Path, *, position: int, end: int):
        self.file, self.path, self.position, self.end = file, path, position, end

    def damaged(self, got: str, *, expected: str) -> InvalidInputError:
        return InvalidInputError(
            f"header of {self.path} at byte {self.position:,}",
            got=got,
            expected=expected,
            fix="the file is damaged or truncated: fetch it again",
        )

    def take(self, length: int) -> bytes:
        left = self.end - self.position
        data = self.file.read(length) if length <= left else b""
        if len(data) < length:
            raise self.damaged(f"a value of {length:,} bytes", expected=f"at most the {left:,} left")
        self.position += length
        return data

    def scalar(self, code: str) -> Any:
        return np.frombuffer(self.take(np.dtype(code).itemsize), f"<{code}")[0].item()

    def string(self) -> str:
        # The inner loop over vocabularies: struct is three times as fast as NumPy here.
        (length,) = struct.unpack("<Q", self.take(8))
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"bytes that are not UTF-8 ({error})", expected="a string") from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(int(self.scalar("u4")), int(self.scalar("u8")))
        raise self.damaged(f"metadata type {kind}", expected="a type from 0 to 12")

    def array(self, kind: int, count: int) -> list[Any]:
        if kind != _STRING and kind not in _SCALARS:
            raise self.damaged(f"a list of metadata type {kind}", expected="a list of numbers or strings")
        if count > _MAXIMUM_ITEMS:
            raise self.damaged(f"a list of {count:,} items", expected=f"at most {_MAXIMUM_ITEMS:,}")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        code = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(count * code.itemsize), code.newbyteorder("<")).tolist()

    def metadata_entry(self) -> tuple[str, Any]:
        key, kind = self.string(), int(self.scalar("u4"))
        value = self.value(kind)
        if key == "general.alignment" and (kind != _UINT32 or value.bit_count() != 1):
            raise self.damaged(f"general.alignment {brief(value)}", expected="a power of two, as uint32")
        return key, value

    def tensor_entry(self) -> GgufTensor:
        """The offset is still relative to the data."""
        name, dimensions = self.string(), int(self.scalar("u4"))
        if not 1 <= dimensions <= _MAXIMUM_DIMENSIONS:
            raise self.damaged(f"{dimensions} dimensions for tensor {brief(name)}", expected="1 to 4")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        if 0 in shape:
            raise self.damaged(f"sizes {shape} for tensor {brief(name)}", expected="none of them 0")
        type_id, offset = int(self.scalar("u4")), int(self.scalar("u8"))
        return GgufTensor(name, tuple(reversed(shape)), type_id, offset)
