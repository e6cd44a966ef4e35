"""Checkpoints whose matrices are stored as `sparse-bitmask`: a `Source` that shows the dense tensors.

Over a directory of safetensors files, one matrix expanded at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from endor_jax.errors import InvalidInputError
from endor_jax.sources.brief import brief
from endor_jax.sources.source import TensorInfo, no_such_tensor
from endor_jax.sources.sparse_bitmask_config import SPARSE_BITMASK, storage_of, without_storage
from endor_jax.sources.sparse_bitmask_layout import SUFFIXES, check_infos, expand
from endor_jax.sources.stored_source import StoredSource


@dataclass(frozen=True)
class SparseBitmaskSource:
    """A `Source`. modules: for each matrix that is stored compressed, what its four tensors begin with."""

    stored: StoredSource
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    modules: Mapping[str, str] = field(repr=False)

    @property
    def path(self) -> Path:
        """The directory that was opened."""
        return self.stored.path

    def read(self, name: str) -> np.ndarray:
        """One tensor, dense. Raises InvalidInputError if it is not there or its pieces do not agree."""
        if name not in self.tensors:
            raise no_such_tensor(self.path, name)
        module = self.modules.get(name)
        if module is None:
            return self.stored.read(name)
        pieces = {suffix: self.stored.read(f"{module}.{suffix}") for suffix in SUFFIXES[1:]}
        rows, columns = self.tensors[name].shape
        return expand(f"tensor {brief(module)} of {self.path}", (rows, columns), pieces)

    def files(self) -> dict[str, bytes]:
        """The files beside the weights; config.json is that of the dense model."""
        config = json.dumps(self.config, indent=2, sort_keys=True, ensure_ascii=False)
        return self.stored.files() | {"config.json": config.encode()}

    def close(self) -> None:
        """Lets go of the files."""
        self.stored.close()

    def __enter__(self) -> SparseBitmaskSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def dense_source(stored: StoredSource) -> StoredSource | SparseBitmaskSource:
    """The checkpoint with dense tensors and the config.json of the dense model; `stored` itself where that
    says nothing of compression.

    Only shapes are read. Raises UnsupportedError for a checkpoint that is quantised or stored in another
    format, InvalidInputError for matrices whose pieces are missing or cannot belong together.
    """
    storage = storage_of(stored.config)
    if storage is None:
        return stored
    modules = _modules(stored) if storage == SPARSE_BITMASK else {}
    pieces = {f"{module}.{suffix}": name for name, module in modules.items() for suffix in SUFFIXES}
    tensors: dict[str, TensorInfo] = {}
    for stored_name, info in stored.tensors.items():
        name = pieces.get(stored_name, stored_name)
        if name not in tensors:
            tensors[name] = info if stored_name not in pieces else _matrix_info(stored, modules[name])
    return SparseBitmaskSource(stored, without_storage(stored.config), tensors, modules)


def _modules(stored: StoredSource) -> dict[str, str]:
    """Name of each dense matrix -> what the names of its pieces begin with."""
    modules: dict[str, str] = {}
    for tensor in stored.tensors:
        module, _, suffix = tensor.rpartition(".")
        if suffix != "bitmask":
            continue
        name = module if module.endswith(".weight") else f"{module}.weight"
        if name in modules or name in stored.tensors:
            raise _twice(stored, name)
        modules[name] = module
    return modules


def _matrix_info(stored: StoredSource, module: str) -> TensorInfo:
    """Shape and dtype of a compressed matrix, once its four tensors are what they must be."""
    where = f"tensor {brief(module)} of {stored.path}"
    if missing := [suffix for suffix in SUFFIXES if f"{module}.{suffix}" not in stored.tensors]:
        raise InvalidInputError(
            where,
            got=f"no tensor .{missing[0]}",
            expected=f"all of {', '.join(SUFFIXES)}",
            fix="fetch the checkpoint again",
        )
    infos = {suffix: stored.tensors[f"{module}.{suffix}"] for suffix in SUFFIXES}
    shape: list[int] = []
    if infos["shape"] == TensorInfo((2,), "int64"):
        shape = stored.read(f"{module}.shape").tolist()
    if len(shape) != 2 or min(shape) < 0:
        raise InvalidInputError(
            f"{where}.shape",
            got=brief(shape or infos["shape"]),
            expected="int64 (2,): rows and columns",
            fix="only matrices are stored so: fetch the checkpoint again",
        )
    check_infos(where, (shape[0], shape[1]), infos)
    return TensorInfo((shape[0], shape[1]), infos["compressed"].dtype)


def _twice(stored: StoredSource, name: str) -> InvalidInputError:
    return InvalidInputError(
        f"tensor {brief(name)} of {stored.path}",
        got="it twice, dense and compressed, or compressed under two names",
        expected="each tensor once",
        fix="fetch the checkpoint again",
    )
