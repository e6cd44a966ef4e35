"""A source whose tensors are ranges of files: what all readers of directories other than GGUF give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from endor_jax.sources.copied_files import read_copied_files
from endor_jax.sources.json_object import read_json_object
from endor_jax.sources.source import TensorInfo, no_such_tensor
from endor_jax.sources.stored_tensor import StoredTensor, read_stored


@dataclass(frozen=True)
class StoredSource:
    """A `Source` over a directory. What describes the tensors is read when it is opened, data only by `read`.

    No file stays open between reads, so `close` has nothing to do.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    stored: Mapping[str, StoredTensor] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own memory, C order and native dtype; InvalidInputError if it is not there."""
        if name not in self.stored:
            raise no_such_tensor(self.path, name)
        return read_stored(self.stored[name], what=f"tensor {name!r}")

    def files(self) -> dict[str, bytes]:
        """The config and tokenizer files that lie beside the weights, or are made of those."""
        return read_copied_files(self.path)

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> StoredSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def stored_source(directory: Path, stored: Mapping[str, StoredTensor]) -> StoredSource:
    """The source of these tensors and of config.json in `directory`.

    Raises NotFoundError or InvalidInputError for a config.json that is missing or cannot be read.
    """
    return StoredSource(
        path=directory,
        config=read_json_object(directory / "config.json"),
        tensors={name: tensor.info for name, tensor in stored.items()},
        stored=stored,
    )
