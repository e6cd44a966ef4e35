"""Writing Hugging Face directories: tensors come one at a time and go straight to their place on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from endor_jax.arrays import dtype_from_name
from endor_jax.errors import DestinationExistsError, InvalidInputError
from endor_jax.sources.partial_files import partial_files, write_all
from endor_jax.sources.safetensors import INDEX_FILE, SINGLE_FILE
from endor_jax.sources.safetensors_header import build_header
from endor_jax.sources.source import TensorInfo

SHARD_BYTES = 5_000_000_000
"""Most bytes of data in one file: what transformers and the hub use."""


def write_safetensors(
    directory: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    infos: Mapping[str, TensorInfo],
    files: Mapping[str, bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write `tensors` and `files` to a directory that transformers and safetensors load; what was written.

    `infos` lists every tensor beforehand (names are the caller's, shapes and dtypes must agree), so that
    headers and offsets are known and each tensor is written when it comes, in any order: one tensor is in
    memory at a time. With more than `shard_bytes` of data there are shards and an index; a tensor that is
    larger than that has a shard of its own.

    Everything is written under temporary names, flushed to disk and then renamed, weights before index: a
    failure leaves nothing behind. Raises DestinationExistsError if a file is in the way, InvalidInputError if
    `tensors` is not what `infos` announced, and as `partial_files` does.
    """
    shards = _shards(infos, shard_bytes)
    contents = {**(files or {}), **_index(shards, infos)}
    sizes = {directory / name: shard.size for name, shard in shards.items()}
    sizes |= {directory / name: len(data) for name, data in contents.items()}
    _refuse_existing(directory, list(sizes))
    with partial_files(directory, sizes) as opened:
        _write_tensors(tensors, opened, directory=directory, shards=shards, infos=infos)
        for name, data in contents.items():
            write_all(opened[directory / name], memoryview(data), directory=directory)
    return list(sizes)


@dataclass(frozen=True)
class _Shard:
    """One file of `size` bytes: what comes before the data, and where in the file each tensor starts."""

    size: int
    header: bytes
    offsets: dict[str, int]


def _shards(infos: Mapping[str, TensorInfo], shard_bytes: int) -> dict[str, _Shard]:
    """File name -> shard, filled in the order of `infos`."""
    groups: list[dict[str, TensorInfo]] = [{}]
    used = 0
    for name, info in infos.items():
        if groups[-1] and used + info.nbytes > shard_bytes:
            groups.append({})
            used = 0
        groups[-1][name] = info
        used += info.nbytes
    if len(groups) == 1:
        return {SINGLE_FILE: _shard(groups[0])}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": _shard(group)
        for number, group in enumerate(groups, start=1)
    }


def _shard(infos: Mapping[str, TensorInfo]) -> _Shard:
    header, offsets = build_header(infos)
    return _Shard(len(header) + sum(info.nbytes for info in infos.values()), header, offsets)


def _index(shards: dict[str, _Shard], infos: Mapping[str, TensorInfo]) -> dict[str, bytes]:
    """The index as a file, or nothing when one file holds it all."""
    if len(shards) == 1:
        return {}
    index = {
        "metadata": {"total_size": sum(info.nbytes for info in infos.values())},
        "weight_map": {name: shard for shard, layout in shards.items() for name in layout.offsets},
    }
    return {INDEX_FILE: (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode("utf-8")}


def _refuse_existing(directory: Path, targets: list[Path]) -> None:
    if directory.exists() and not directory.is_dir():
        raise DestinationExistsError(
            str(directory), got="a file", expected="a directory, or nothing yet", fix="choose another path"
        )
    weights = [*directory.glob("*.safetensors"), directory / INDEX_FILE]
    # Weights under other names matter too: the directory would hold two checkpoints.
    for path in (*weights, *targets):
        if os.path.lexists(path):
            raise DestinationExistsError(
                str(path),
                got="a file that is already there",
                expected="a directory without weights in it",
                fix="choose another directory or remove it first",
            )


def _write_tensors(
    tensors: Iterable[tuple[str, np.ndarray]],
    opened: Mapping[Path, FileIO],
    *,
    directory: Path,
    shards: dict[str, _Shard],
    infos: Mapping[str, TensorInfo],
) -> None:
    """Put headers and tensors where they belong in their files."""
    place = {
        name: (opened[directory / shard], offset)
        for shard, s in shards.items()
        for name, offset in s.offsets.items()
    }
    for name, shard in shards.items():
        write_all(opened[directory / name], memoryview(shard.header), directory=directory)
    missing = dict.fromkeys(infos)
    for name, array in tensors:
        if name not in missing:
            raise _disagree(name, got="it twice or unannounced", expected="each announced tensor once")
        del missing[name]
        got = TensorInfo(array.shape, array.dtype.name)
        if got != infos[name]:
            raise _disagree(name, got=f"{got.dtype} {got.shape}", expected=f"{infos[name]}")
        file, offset = place[name]
        file.seek(offset)
        # Little-endian whatever came in; and ml_dtypes arrays have no buffer interface, bytes have.
        dense = np.ascontiguousarray(array, dtype_from_name(got.dtype))
        write_all(file, dense.reshape(-1).view(np.uint8).data, directory=directory)
    if missing:
        raise _disagree(next(iter(missing)), got="no data for it", expected="each announced tensor once")


def _disagree(name: str, *, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(
        f"tensor {name!r} to be written",
        got=got,
        expected=expected,
        fix="make `infos` describe exactly what `tensors` yields",
    )
