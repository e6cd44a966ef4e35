"""Hugging Face directories: one or many safetensors files, an index, and config files beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from endor_jax.arrays import dtype_from_name
from endor_jax.sources.byte_range import is_regular_file, read_range
from endor_jax.sources.copied_files import read_copied_files
from endor_jax.sources.json_object import read_json_object
from endor_jax.sources.safetensors_header import Location, parse_header
from endor_jax.sources.sharded import merged, read_sharded
from endor_jax.sources.source import TensorInfo, no_such_tensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


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
            raise no_such_tensor(self.path, name)
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
    if is_regular_file(directory / SINGLE_FILE) or is_regular_file(directory / INDEX_FILE):
        found = read_sharded(directory, SINGLE_FILE, parse_header)
    else:
        files = sorted(file.name for file in directory.glob("*.safetensors"))
        found, _ = merged(directory, files, parse_header)
    return SafetensorsSource(
        path=directory,
        config=config,
        tensors={name: info for name, (info, _) in found.items()},
        locations={name: location for name, (_, location) in found.items()},
    )
