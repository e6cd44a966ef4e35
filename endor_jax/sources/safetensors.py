"""Hugging Face directories: one or many safetensors files, an index, and config files beside them."""

from __future__ import annotations

from pathlib import Path

from endor_jax.sources.byte_range import is_regular_file
from endor_jax.sources.safetensors_header import parse_header
from endor_jax.sources.sharded import merged, read_sharded
from endor_jax.sources.stored_source import StoredSource, stored_source
from endor_jax.sources.stored_tensor import StoredTensor, in_order

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def open_safetensors(directory: Path) -> StoredSource:
    """Open a directory that holds config.json and safetensors files, sharded or not.

    As in transformers, model.safetensors is taken first, then the index, which is believed about what
    belongs to the model; with neither, every *.safetensors file is read. Raises NotFoundError if config.json
    or a shard is missing and InvalidInputError if index and shards contradict each other.
    """
    if is_regular_file(directory / SINGLE_FILE) or is_regular_file(directory / INDEX_FILE):
        found = read_sharded(directory, SINGLE_FILE, parse_header)
    else:
        files = sorted(file.name for file in directory.glob("*.safetensors"))
        found, _ = merged(directory, files, parse_header)
    stored = {
        name: StoredTensor(info, (place,), in_order(info.shape)) for name, (info, place) in found.items()
    }
    return stored_source(directory, stored)
