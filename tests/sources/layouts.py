"""The tensors of a tiny model in every layout that published repositories have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import to_bytes
from flax.traverse_util import unflatten_dict

from tests.sources.tiny_torch_bin import torch_file

LAYOUTS = (
    "pytorch_model.bin",
    "pytorch_model.bin in shards",
    "flax_model.msgpack",
    "flax_model.msgpack in shards",
)


def in_layout(directory: Path, source: Path, tensors: Mapping[str, np.ndarray], layout: str) -> Path:
    """`directory` with these tensors in a layout, and all else that lies in `source`."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    file = layout.split(" ")[0]
    by_name: dict[str, Any] = dict(tensors)
    if file == "flax_model.msgpack":
        config = json.loads((source / "config.json").read_text())
        by_name = flax_parameters(tensors, norm="weight" if config["model_type"] == "llama" else "scale")
    if "shards" not in layout:
        (directory / file).write_bytes(written(file, by_name))
        return directory
    names, weight_map = list(by_name), {}
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for number, half in enumerate(halves):
        shard = file.replace(".", f"-0000{number + 1}-of-00002.")
        (directory / shard).write_bytes(written(file, {name: by_name[name] for name in half}))
        weight_map |= dict.fromkeys(half, shard)
    (directory / f"{file}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def written(file: str, tensors: Mapping[str, np.ndarray]) -> bytes:
    """One file; names of Flax parameters are paths, "model/norm/weight"."""
    return torch_file(tensors) if file == "pytorch_model.bin" else to_bytes(unflatten_dict(tensors, sep="/"))


def flax_parameters(tensors: Mapping[str, np.ndarray], *, norm: str) -> dict[str, np.ndarray]:
    """By path, as transformers 4 named and laid them out; `norm` is what its norms call their weight."""
    found: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        *modules, leaf = name.split(".")
        if leaf == "weight" and array.ndim == 1:
            leaf = norm
        elif leaf == "weight" and "embed" in modules[-1]:
            leaf = "embedding"
        elif leaf == "weight":
            leaf, array = "kernel", array.T
        found["/".join([*modules, leaf])] = np.asarray(array, order="C")
    return found
