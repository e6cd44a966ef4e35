"""flax_model.msgpack, one or many with an index: what transformers' Flax models were saved as.

Flax names and lays out parameters its own way. Rules of transformers 4 (`modeling_flax_pytorch_utils`, whose
Flax models are gone in transformers 5): modules have torch's names; `kernel` is a weight whose inputs come
first; `embedding` and the `scale` of a norm are weights as they are; Llama's norms say `weight` themselves.
"""

from __future__ import annotations

from pathlib import Path

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.sources.brief import brief
from endor_jax.sources.msgpack_arrays import read_arrays
from endor_jax.sources.sharded import read_sharded
from endor_jax.sources.source import TensorInfo
from endor_jax.sources.stored_source import StoredSource, stored_source
from endor_jax.sources.stored_tensor import StoredTensor

FILE = "flax_model.msgpack"
_LEAVES = {
    ("kernel", 2): "weight",
    ("embedding", 2): "weight",
    ("scale", 1): "weight",
    ("weight", 1): "weight",
    ("bias", 1): "bias",
}
"""Last name in Flax and number of dimensions -> last name in torch."""


def open_flax_msgpack(directory: Path) -> StoredSource:
    """Open a directory that holds config.json and flax_model.msgpack, or shards of it and their index.

    Kernels are transposed as they are read. Raises NotFoundError if config.json or a shard is missing,
    UnsupportedError for what is not a tree of Llama's or OPT's kinds of parameter, InvalidInputError for
    files that are damaged or contradict each other.
    """
    found = read_sharded(directory, FILE, _by_path)
    stored: dict[str, StoredTensor] = {}
    for path, tensor in found.items():
        name, named = _as_in_torch(tuple(path.split("/")), tensor, where=str(directory))
        if name in stored:
            raise InvalidInputError(
                f"parameter {brief(path)} of {directory}",
                got=f"a second tensor {brief(name)}",
                expected="each tensor once",
                fix="remove one of the two",
            )
        stored[name] = named
    return stored_source(directory, stored)


def _by_path(file: Path) -> dict[str, StoredTensor]:
    """By path, as the index writes it: "model/norm/weight"."""
    found = read_arrays(file)
    by_path = {"/".join(names): tensor for names, tensor in found.items()}
    if len(by_path) < len(found) or any("/" in name for names in found for name in names):
        raise InvalidInputError(
            f"msgpack file {file}",
            got="names with a slash in them",
            expected="maps in maps",
            fix="save the nested parameters: flax.serialization.to_bytes(params)",
        )
    return by_path


def _as_in_torch(names: tuple[str, ...], tensor: StoredTensor, *, where: str) -> tuple[str, StoredTensor]:
    """The torch name of a parameter, and the tensor with its axes as torch has them."""
    *modules, leaf = names
    shape = tensor.info.shape
    if (leaf, len(shape)) not in _LEAVES:
        raise UnsupportedError(
            f"parameter {brief('/'.join(names))} of {where}",
            got=f"{brief(leaf)} of shape {brief(shape)}",
            expected=", ".join(f"{kind} of {dimensions} dimensions" for kind, dimensions in _LEAVES),
            fix="only transformers' Flax models of the supported families can be read",
        )
    if leaf == "kernel":
        info = TensorInfo(shape[::-1], tensor.info.dtype)
        tensor = StoredTensor(info, tensor.ranges, tensor.strides[::-1], tensor.start)
    return ".".join([*modules, _LEAVES[leaf, len(shape)]]), tensor
