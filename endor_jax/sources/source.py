"""What every reader of other people's checkpoints offers: a config, tensors by Hugging Face name, files.

A source is read one tensor at a time, because a checkpoint may be larger than memory. Whatever the format
on disk, names, row order and config keys are those of Hugging Face `transformers`, so that one key table
(`mapping`) serves all readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from endor_jax.arrays import dtype_from_name
from endor_jax.errors import InvalidInputError

COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What travels beside the weights, where present: everything `endor_jax.text` and transformers read."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor as `Source.read` returns it; `dtype` is a NumPy or ml_dtypes name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the dense array."""
        return prod(self.shape) * dtype_from_name(self.dtype).itemsize


@runtime_checkable
class Source(Protocol):
    """A checkpoint somebody else wrote. Reading never writes to it and is safe from several threads."""

    @property
    def path(self) -> Path:
        """The directory or file that was opened."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration, in the form of Hugging Face's config.json."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor in the checkpoint, by Hugging Face name, in the order it is stored."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor in memory of its own, with the shape and dtype that `tensors[name]` states.

        Raises InvalidInputError if there is no such tensor or its bytes are not all there.
        """
        ...

    def files(self) -> dict[str, bytes]:
        """Contents by file name of the `COPIED_FILES` this source has or can build."""
        ...

    def close(self) -> None:
        """Let go of what is open; closing twice is fine."""
        ...

    def __enter__(self) -> Source: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def no_such_tensor(path: Path, name: str) -> InvalidInputError:
    """The error for a name that a source does not have."""
    return InvalidInputError(
        f"source {path}",
        got=f"tensor name {name!r}",
        expected="one of its `tensors`",
        fix="check the spelling",
    )
