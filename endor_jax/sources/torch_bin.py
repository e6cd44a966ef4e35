"""pytorch_model.bin, one or many with an index: tensors that torch.save wrote, read without torch.

A tensor is a view of a storage, which several tensors may share (tied weights). Here every view is checked
against its storage, and every storage against the bytes that are in the file.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

from endor_jax.arrays import dtype_from_name
from endor_jax.errors import InvalidInputError
from endor_jax.sources.brief import brief
from endor_jax.sources.safetensors_header import Location
from endor_jax.sources.sharded import read_sharded
from endor_jax.sources.source import TensorInfo
from endor_jax.sources.stored_source import StoredSource, stored_source
from endor_jax.sources.stored_tensor import StoredTensor, countable, extent
from endor_jax.sources.torch_bin_pickle import View, read_views
from endor_jax.sources.torch_bin_zip import read_archive

FILE = "pytorch_model.bin"


def open_torch_bin(directory: Path) -> StoredSource:
    """Open a directory that holds config.json and pytorch_model.bin, or shards of it and their index.

    Nothing in the files is run. Raises NotFoundError if config.json or a shard is missing, UnsupportedError
    for what is not a state dict of plain tensors, InvalidInputError for files that are damaged or contradict
    each other.
    """
    return stored_source(directory, read_sharded(directory, FILE, parse_torch_bin))


def parse_torch_bin(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one torch file, in the order of its state dict. Raises as `open_torch_bin`."""
    archive = read_archive(path)
    where = f"torch file {path}"
    file_bytes = path.stat().st_size
    dtypes: dict[str, str] = {}
    found: dict[str, StoredTensor] = {}
    for name, view in read_views(archive.pickle, where=where).items():
        tensor = f"tensor {brief(name)} of {where}"
        place = _storage_place(archive.storages.get(view.storage.key), view, where=tensor)
        if dtypes.setdefault(view.storage.key, view.storage.dtype) != view.storage.dtype:
            raise _damaged(
                tensor,
                got=f"storage {brief(view.storage.key)} as {view.storage.dtype}",
                expected=f"{dtypes[view.storage.key]}, as another tensor has it",
            )
        _check_view(view, where=tensor, file_bytes=file_bytes)
        info = TensorInfo(view.shape, view.storage.dtype)
        found[name] = StoredTensor(info, (place,), view.strides, view.start)
    return found


def _storage_place(place: Location | None, view: View, *, where: str) -> Location:
    """The bytes of a view's storage, of which there must be as many as the pickle says."""
    storage = view.storage
    wanted = storage.elements * dtype_from_name(storage.dtype).itemsize
    if place is None or place.length != wanted:
        raise _damaged(
            where,
            got="no bytes at all" if place is None else f"a storage of {place.length:,} bytes",
            expected=f"data/{storage.key} of {wanted:,}",
        )
    return place


def _check_view(view: View, *, where: str, file_bytes: int) -> None:
    """A view lies inside its storage and, should it repeat elements, is not larger than the file."""
    shape, storage = view.shape, view.storage
    item_bytes = dtype_from_name(storage.dtype).itemsize
    if len(view.strides) != len(shape) or not countable(shape, item_bytes):
        raise _damaged(
            where,
            got=f"shape {brief(shape)} with strides {brief(view.strides)}",
            expected="one stride per size, and a product below 2**63 bytes",
        )
    needed = view.start + (0 if 0 in shape else extent(shape, view.strides))
    if needed > storage.elements:
        raise _damaged(
            where,
            got=f"shape {brief(shape)}, strides {brief(view.strides)} from element {view.start:,}",
            expected=f"a view of the {storage.elements:,} elements of its storage",
        )
    if prod(shape) * item_bytes > file_bytes:
        raise _damaged(
            where,
            got=f"shape {brief(shape)}, most of it repetition",
            expected=f"at most the {file_bytes:,} bytes of the whole file",
        )


def _damaged(where: str, *, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(where, got=got, expected=expected, fix="the file is damaged: fetch it again")
