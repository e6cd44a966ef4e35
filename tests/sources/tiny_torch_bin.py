"""Torch files written without torch: the pickle by hand, the archive by zipfile."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from endor_jax.sources import Source, open_source
from endor_jax.sources.torch_bin_pickle import STORAGES

CLASSES = {dtype: name for name, dtype in STORAGES.items()}


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def called(name: str, *arguments: bytes) -> bytes:
    return named(name) + b"(" + b"".join(arguments) + b"tR"


def storage(kind: str, key: str, elements: int) -> bytes:
    return b"(" + text("storage") + named(kind) + text(key) + text("cpu") + number(elements) + b"tQ"


NO_HOOKS = called("collections.OrderedDict")


def view(
    data: bytes, *, shape: tuple[int, ...], strides: tuple[int, ...], start: int = 0, more: bytes = b""
) -> bytes:
    """A tensor that is a view of the storage pickled as `data`."""
    parts = (data, number(start), numbers(shape), numbers(strides), b"\x89", NO_HOOKS, more)
    return called("torch._utils._rebuild_tensor_v2", *parts)


def state_dict(entries: Mapping[str, bytes]) -> bytes:
    items = b"".join(text(name) + value for name, value in entries.items())
    metadata = b"}" + text("_metadata") + named("collections.OrderedDict") + b")Rsb"
    return b"\x80\x02" + named("collections.OrderedDict") + b")R(" + items + b"u" + metadata + b"."


def archive(
    pickle: bytes,
    storages: Mapping[str, bytes],
    *,
    members: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """The bytes of a torch file."""
    target = io.BytesIO()
    all_of_them = {"data.pkl": pickle, "byteorder": b"little", "version": b"3\n"} | (members or {})
    all_of_them |= {f"data/{key}": data for key, data in storages.items()}
    with zipfile.ZipFile(target, "w", compression) as made:
        for name, data in all_of_them.items():
            # A fixed date: the same arguments, the same bytes.
            made.writestr(zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0)), data, compression)
    return target.getvalue()


def torch_file(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A state dict of these arrays, each with a storage of its own."""
    entries: dict[str, bytes] = {}
    for key, (name, array) in enumerate(tensors.items()):
        data = storage(CLASSES[array.dtype.name], str(key), array.size)
        strides = tuple(stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides)
        entries[name] = view(data, shape=array.shape, strides=strides)
    return archive(
        state_dict(entries), {str(key): array.tobytes() for key, array in enumerate(tensors.values())}
    )


def opened(directory: Path, content: bytes) -> Source:
    """A directory with this pytorch_model.bin and an empty config, opened."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "pytorch_model.bin").write_bytes(content)
    return open_source(directory)
