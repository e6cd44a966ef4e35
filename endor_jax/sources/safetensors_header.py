"""The header of a safetensors file: read with every check the format asks for, and built.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the data. The JSON maps a tensor
name to its dtype, shape and [begin, end) in the data; `__metadata__` maps strings to strings. The ranges
must cover the data exactly, with no holes and no overlaps.
Source: https://github.com/huggingface/safetensors#format

It is parsed here and not with the safetensors package because that package maps the file (mapped pages
count as memory), and because which dtypes it can give as NumPy depends on its version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from endor_jax.arrays import dtype_from_name
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.sources.brief import brief
from endor_jax.sources.byte_range import read_range, readable
from endor_jax.sources.json_object import MAXIMUM_BYTES, parse_json_object
from endor_jax.sources.source import TensorInfo

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
"""Safetensors name -> NumPy or ml_dtypes name. Its 4- and 6-bit floats have no byte-addressed array type."""

_LENGTH_BYTES = 8
_MAXIMUM_DIMENSIONS = 64  # NumPy's limit
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Location:
    """Where one tensor lies: `length` bytes from `offset`, counted from the start of `file`."""

    file: Path
    offset: int
    length: int


def parse_header(path: Path) -> dict[str, tuple[TensorInfo, Location]]:
    """Every tensor of one safetensors file, in the order of its data.

    Raises InvalidInputError if the file is not safetensors, is truncated, or its header contradicts itself;
    UnsupportedError if a tensor has a dtype that is not in `DTYPES`.
    """
    with readable(path):
        size = path.stat().st_size
    where = f"safetensors file {path}"
    if size < _LENGTH_BYTES:
        raise _damaged(where, got=f"{size} bytes", expected="at least 8")
    length = int.from_bytes(
        read_range(path, offset=0, length=_LENGTH_BYTES, what="safetensors header").tobytes(), "little"
    )
    if length > min(MAXIMUM_BYTES, size - _LENGTH_BYTES):
        raise _damaged(
            where,
            got=f"a header of {length:,} bytes in a file of {size:,}",
            expected=f"one that fits in the file, of at most {MAXIMUM_BYTES:,}",
        )
    text = read_range(path, offset=_LENGTH_BYTES, length=length, what="safetensors header").tobytes()
    header = parse_json_object(text, where=f"header of {where}")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not _maps_strings(metadata):
        raise _damaged(where, got=f"__metadata__ {brief(metadata)}", expected="strings by string")
    entries = sorted(
        ((name, *_entry(where, name, value)) for name, value in header.items()), key=lambda entry: entry[2:]
    )
    start = _LENGTH_BYTES + length
    _check_cover(where, entries, data_bytes=size - start)
    return {
        name: (info, Location(path, offset=start + begin, length=end - begin))
        for name, info, begin, end in entries
    }


def _entry(where: str, name: str, value: Any) -> tuple[TensorInfo, int, int]:
    """One header value checked on its own: the tensor and its [begin, end) in the data."""
    where = f"tensor {brief(name)} of {where}"
    match value:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
            value.keys() == _ENTRY_KEYS and all(_is_size(number) for number in (*shape, begin, end))
        ):
            pass
        case _:
            raise _damaged(
                where, got=f"header entry {brief(value)}", expected="dtype, shape and data_offsets"
            )
    if dtype not in DTYPES:
        raise UnsupportedError(
            where,
            got=f"dtype {brief(dtype)}",
            expected=f"one of {', '.join(DTYPES)}",
            fix="save the checkpoint with a dtype from that list",
        )
    info = TensorInfo(tuple(shape), DTYPES[dtype])
    # Of a shape like (2**62, 0), all but the zeros must be countable too, or no array can have it.
    item_bytes = dtype_from_name(info.dtype).itemsize
    if len(shape) > _MAXIMUM_DIMENSIONS or prod(size or 1 for size in shape) * item_bytes >= 2**63:
        raise _damaged(
            where,
            got=f"shape {brief(shape)}",
            expected=f"at most {_MAXIMUM_DIMENSIONS} sizes whose product is below 2**63 bytes",
        )
    if end - begin != info.nbytes:
        raise _damaged(
            where,
            got=f"bytes {begin:,} to {end:,}",
            expected=f"a range of {info.nbytes:,} bytes for {dtype} {brief(tuple(shape))}",
        )
    return info, begin, end


def _is_size(number: Any) -> bool:
    """A number that 64 bits can count: bool is an int to Python, and JSON's integers have no end."""
    return type(number) is int and 0 <= number < 2**63


def _maps_strings(value: Any) -> bool:
    """The form of __metadata__."""
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _check_cover(where: str, entries: list[tuple[str, TensorInfo, int, int]], *, data_bytes: int) -> None:
    """Ranges in order of `begin` must follow each other from 0 to the end of the file."""
    previous, reached = "the header", 0
    for name, _, begin, end in entries:
        if begin != reached:
            kind = "an overlap" if begin < reached else "a hole"
            raise _damaged(
                f"tensor {brief(name)} of {where}",
                got=f"begin at byte {begin:,} ({kind})",
                expected=f"{reached:,}, the end of {previous}",
            )
        previous, reached = brief(name), end
    if reached != data_bytes:
        raise _damaged(where, got=f"{data_bytes:,} bytes of data", expected=f"{reached:,} as its header says")


def _damaged(where: str, *, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(
        where, got=got, expected=expected, fix="the file is damaged or truncated: fetch it again"
    )


def build_header(tensors: Mapping[str, TensorInfo]) -> tuple[bytes, dict[str, int]]:
    """The bytes before the data, and the offset in the file at which each tensor goes.

    Wide dtypes come first, and the header is padded to a multiple of 8, so that every tensor starts at a
    multiple of its element size. Raises UnsupportedError for a dtype that safetensors has no name for.
    """
    codes = {name: code for code, name in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    reached = 0
    for name, info in sorted(
        tensors.items(), key=lambda item: dtype_from_name(item[1].dtype).itemsize, reverse=True
    ):
        if info.dtype not in codes:
            raise UnsupportedError(
                f"tensor {name!r}",
                got=f"dtype {info.dtype}",
                expected=f"one of {', '.join(codes)}",
                fix="convert it to a dtype that safetensors can hold",
            )
        end = reached + prod(info.shape) * dtype_from_name(info.dtype).itemsize
        header[name] = {
            "dtype": codes[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [reached, end],
        }
        reached = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    start = _LENGTH_BYTES + len(text)
    offsets = {name: start + value["data_offsets"][0] for name, value in header.items() if name in tensors}
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text, offsets
