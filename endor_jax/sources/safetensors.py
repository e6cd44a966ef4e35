"""Hugging Face directories: one or many safetensors files, an index, and config files beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from endor_jax.arrays import dtype_from_name
from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.sources.brief import brief
from endor_jax.sources.byte_range import is_regular_file, read_range
from endor_jax.sources.copied_files import read_copied_files
from endor_jax.sources.json_object import read_json_object
from endor_jax.sources.safetensors_header import Location, parse_header
from endor_jax.sources.source import TensorInfo

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHARD = re.compile(r"[A-Za-z0-9._ +=-]{1,200}\.safetensors")


@dataclass(frozen=True)
class SafetensorsSource:
    """A `Source` over a directory. Headers are read when it is opened, data only by `read`.

    No file stays open between reads, so `close` has nothing to do.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    locations: Mapping[str, Location] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own memory and native dtype; InvalidInputError if it is not there."""
        if name not in self.tensors:
            raise InvalidInputError(
                f"source {self.path}",
                got=f"tensor name {name!r}",
                expected="one of its `tensors`",
                fix="check the spelling",
            )
        info, place = self.tensors[name], self.locations[name]
        data = read_range(place.file, offset=place.offset, length=place.length, what=f"tensor {name!r}")
        return data.view(dtype_from_name(info.dtype)).reshape(info.shape)

    def files(self) -> dict[str, bytes]:
        """The config and tokenizer files that lie beside the weights."""
        return read_copied_files(self.path)

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> SafetensorsSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_safetensors(directory: Path) -> SafetensorsSource:
    """Open a directory that holds config.json and safetensors files, sharded or not.

    As in transformers, model.safetensors is taken first, then the index, which is believed about what
    belongs to the model; with neither, every *.safetensors file is read. Raises NotFoundError if config.json
    or a shard is missing and InvalidInputError if index and shards contradict each other.
    """
    config = read_json_object(directory / "config.json")
    if is_regular_file(directory / SINGLE_FILE):
        found = parse_header(directory / SINGLE_FILE)
    elif is_regular_file(directory / INDEX_FILE):
        weight_map = _weight_map(directory / INDEX_FILE)
        found = _merge(directory, sorted(set(weight_map.values())))
        _check_index(directory / INDEX_FILE, weight_map, found)
    else:
        found = _merge(directory, sorted(file.name for file in directory.glob("*.safetensors")))
    return SafetensorsSource(
        path=directory,
        config=config,
        tensors={name: info for name, (info, _) in found.items()},
        locations={name: location for name, (_, location) in found.items()},
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index file."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _wrong_index(index, got="no usable `weight_map`", expected="file names by tensor name")
    for name, shard in weight_map.items():
        # The index came from outside: it must not make us open files elsewhere.
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise _wrong_index(
                index,
                got=f"shard {brief(shard)} for tensor {brief(name)}",
                expected="the name of a .safetensors file in the same directory",
            )
    return weight_map


def _wrong_index(index: Path, *, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(str(index), got=got, expected=expected, fix="fetch the index again")


def _merge(directory: Path, shards: list[str]) -> dict[str, tuple[TensorInfo, Location]]:
    """The tensors of several files; a name may occur in one of them only."""
    found: dict[str, tuple[TensorInfo, Location]] = {}
    for shard in shards:
        if not is_regular_file(directory / shard):
            raise NotFoundError(
                str(directory / shard),
                got="no such file",
                expected=f"a shard that {INDEX_FILE} names",
                fix="fetch the missing shard",
            )
        for name, entry in parse_header(directory / shard).items():
            if name in found:
                raise InvalidInputError(
                    f"tensor {brief(name)}",
                    got=f"two copies, in {found[name][1].file} and {directory / shard}",
                    expected="one",
                    fix="remove the file that does not belong to the checkpoint",
                )
            found[name] = entry
    return found


def _check_index(
    index: Path, weight_map: dict[str, str], found: dict[str, tuple[TensorInfo, Location]]
) -> None:
    """Index and shards must list the same tensors in the same files."""
    for name, shard in weight_map.items():
        place = found[name][1].file.name if name in found else "no shard"
        if place != shard:
            raise InvalidInputError(
                f"tensor {brief(name)} of {index}",
                got=f"it in {place}",
                expected=f"it in {shard}, as the index says",
                fix="fetch index and shards from the same place",
            )
    for name, (_, location) in found.items():
        if name not in weight_map:
            raise InvalidInputError(
                f"tensor {brief(name)} of {location.file}",
                got=f"no entry for it in {index.name}",
                expected="an index that lists every tensor of its shards",
                fix="fetch index and shards from the same place",
            )
