"""Plain Flax checkpoints written by Orbax: a `Source` over a tree of arrays, by a key map.

Whatever Orbax reads is read: checkpoints of its v1 API and of the older checkpointers, with OCDBT or without,
zarr 2 or 3. The tree's structure is read on opening, an array when it is asked for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any

import jax
import numpy as np

from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.format.tree import named_leaves
from endor_jax.sources.brief import brief
from endor_jax.sources.byte_range import is_regular_file
from endor_jax.sources.copied_files import read_copied_files
from endor_jax.sources.json_object import read_json_object
from endor_jax.sources.orbax_api import orbax_v1, reading_orbax, unreadable
from endor_jax.sources.orbax_key_map import KEY_MAP_FILE, Entry, info_of, parse_key_map, resolve
from endor_jax.sources.source import TensorInfo, no_such_tensor

MARKS = frozenset({KEY_MAP_FILE, "_CHECKPOINT_METADATA", "_METADATA", "orbax.checkpoint", "manifest.ocdbt"})
"""Names of files that tell a directory as one for this reader."""


@dataclass(frozen=True)
class OrbaxSource:
    """A `Source`. key_map: the file. directory: what Orbax wrote. tree: as Orbax describes it, a leaf for
    each array. entries: by Hugging Face name. own_config: the config is the key map's own."""

    key_map: Path
    directory: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    entries: Mapping[str, Entry] = field(repr=False)
    tree: Any = field(repr=False)
    own_config: bool
    lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def path(self) -> Path:
        """The key map that was opened."""
        return self.key_map

    def read(self, name: str) -> np.ndarray:
        """One tensor, transposed and reshaped. Raises InvalidInputError if it is not there or unreadable."""
        if name not in self.tensors:
            raise no_such_tensor(self.path, name)
        entry, info = self.entries[name], self.tensors[name]
        with self.lock:  # Orbax counts its operations, one after the other
            array = read_array(self.directory, self.tree, entry.key)
        if entry.transpose is not None:
            array = array.transpose(None if isinstance(entry.transpose, str) else entry.transpose)
        return np.ascontiguousarray(array.reshape(info.shape))

    def files(self) -> dict[str, bytes]:
        """The tokenizer files that lie beside the key map, and config.json, from there or the key map."""
        found = read_copied_files(self.key_map.parent)
        if self.own_config:
            config = json.dumps(self.config, indent=2, sort_keys=True, ensure_ascii=False)
            found |= {"config.json": config.encode()}
        return found

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> OrbaxSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_orbax(path: Path) -> OrbaxSource:
    """Opens a key map, or the directory that has one as key_map.json.

    A key map that was found in a directory names a checkpoint inside of it; one that is given itself may
    name any. Raises NotFoundError if key map, config.json or checkpoint are missing, InvalidInputError for a
    key map that does not fit the checkpoint, or what Orbax cannot read.
    """
    key_map_file = path / KEY_MAP_FILE if path.is_dir() else path
    if not is_regular_file(key_map_file):
        raise _no_key_map(path)
    where = str(key_map_file)
    key_map = parse_key_map(read_json_object(key_map_file), where=where)
    inner = PurePath(key_map.checkpoint)
    if path.is_dir() and (inner.is_absolute() or ".." in inner.parts):
        raise InvalidInputError(
            f"{where}: checkpoint",
            got=brief(key_map.checkpoint),
            expected="a path inside the directory",
            fix="give the key map itself instead of its directory",
        )
    directory = (key_map_file.parent / inner).absolute()
    tree = read_tree(directory)
    keys = {key: _info(leaf) for key, leaf in named_leaves(tree).items()}
    entries = resolve(key_map, keys, where=where)
    tensors: dict[str, TensorInfo] = {}
    for name, entry in entries.items():
        array = keys[entry.key]
        assert array is not None  # resolve has seen to it
        tensors[name] = info_of(entry, array, where=where)
    own = key_map.config
    config = read_json_object(key_map_file.parent / "config.json") if own is None else own
    return OrbaxSource(key_map_file, directory, config, tensors, entries, tree, own is not None)


def read_tree(directory: Path) -> Any:
    """What Orbax says of a checkpoint: its tree, whose leaves have the shape and dtype of an array, or are
    something else. Raises NotFoundError, or InvalidInputError for what Orbax does not read."""
    if not directory.is_dir():
        raise NotFoundError(
            str(directory),
            got="no such directory",
            expected="a checkpoint that Orbax wrote",
            fix=f"correct `checkpoint` in {KEY_MAP_FILE}",
        )
    with reading_orbax(directory):
        tree = orbax_v1().metadata(directory).metadata
    if not jax.tree_util.tree_leaves(tree):
        raise unreadable(directory, got="no arrays", expected="a tree of arrays")
    return tree


def read_array(directory: Path, tree: Any, key: str) -> np.ndarray:
    """One array of a checkpoint whose `read_tree` is `tree`; no other is read. Raises InvalidInputError."""
    ocp = orbax_v1()
    leaves = named_leaves(tree)
    wanted = [np.ndarray if name == key else ocp.PLACEHOLDER for name in leaves]
    abstract = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(tree), wanted)
    with reading_orbax(directory):
        found = named_leaves(ocp.load(directory, abstract))[key]
    expected = _info(leaves[key])
    if not isinstance(found, np.ndarray) or TensorInfo(found.shape, found.dtype.name) != expected:
        raise unreadable(directory, got=f"{type(found).__name__} for {key}", expected=f"{expected}")
    return found


def _info(leaf: Any) -> TensorInfo | None:
    """Shape and dtype of an array as Orbax describes it; None for scalars, text and the like."""
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None:
        return None
    return TensorInfo(tuple(int(size) for size in shape), np.dtype(dtype).name)


def _no_key_map(path: Path) -> NotFoundError:
    return NotFoundError(
        str(path),
        got=f"an Orbax checkpoint without {KEY_MAP_FILE}" if path.is_dir() else "no such file",
        expected=f"{KEY_MAP_FILE}, which says what its arrays are, and config.json",
        fix='write one (docs/importing.md, "Orbax")',
    )
