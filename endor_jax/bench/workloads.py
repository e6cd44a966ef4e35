"""Named model shapes with random weights, written as a Hugging Face directory one tensor at a time.

The weights are normal with the spread of trained ones, so that codecs, sizes and times are those of a real
model of the shape; the text that such a model generates means nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from endor_jax import models
from endor_jax.arrays import dtype_from_name
from endor_jax.errors import OptionError
from endor_jax.sources.mapping import Place, expected_places, to_hf
from endor_jax.sources.safetensors_writer import write_safetensors
from endor_jax.sources.source import TensorInfo

DTYPE = "bfloat16"
BLOCK_ELEMENTS = 1 << 22
"""Random numbers drawn at a time: 16 MiB of float32."""
_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": DTYPE,
}
_OPT: Mapping[str, Any] = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "max_position_embeddings": 2048,
    "torch_dtype": DTYPE,
}


@dataclass(frozen=True)
class Workload:
    """A model shape: its config.json, how many bytes there are in one shard, and what may be taken of it.

    limit_bytes: by what `bench.memory` does, the resident memory that this library promises to stay under.
    """

    config: Mapping[str, Any]
    shard_bytes: int
    limit_bytes: Mapping[str, int]


WORKLOADS = {
    "llama-1b": Workload(  # TinyLlama's shape: 1.1 billion parameters, 2.2 GB
        _LLAMA
        | {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
        },
        shard_bytes=500_000_000,
        limit_bytes={"convert": 16 * 2**30 // 10, "calibrate": 3 * 2**30, "generate": 12 * 2**30 // 10},
    ),
    "llama-10m": Workload(  # the same in small, for tests, with a head no larger than a layer
        _LLAMA
        | {
            "vocab_size": 1024,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 14,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
        },
        shard_bytes=5_000_000,
        limit_bytes={},
    ),
    "opt-10m": Workload(
        _OPT
        | {
            "vocab_size": 2048,
            "hidden_size": 256,
            "word_embed_proj_dim": 256,
            "ffn_dim": 1024,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
        },
        shard_bytes=5_000_000,
        limit_bytes={},
    ),
    # Layers of models that no machine here holds; as many as are asked for. The vocabulary is small, so that
    # the time of the head does not stand for that of layers: 1.71 and 2.04 GB each.
    "llama-70b-layers": Workload(  # Llama-2-70B has 80
        _LLAMA
        | {
            "vocab_size": 2048,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 8,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
        shard_bytes=2_000_000_000,
        limit_bytes={},
    ),
    "opt-66b-layers": Workload(  # OPT-66B has 64
        _OPT
        | {
            "vocab_size": 2048,
            "hidden_size": 9216,
            "word_embed_proj_dim": 9216,
            "ffn_dim": 36864,
            "num_hidden_layers": 8,
            "num_attention_heads": 72,
        },
        shard_bytes=2_000_000_000,
        limit_bytes={},
    ),
}


def workload(name: str, layers: int | None = None) -> Workload:
    """The workload called `name`, with another number of layers if given.

    Raises OptionError, naming all, if there is none, and for fewer layers than one.
    """
    if name not in WORKLOADS:
        raise OptionError("model", got=repr(name), expected=", ".join(WORKLOADS), fix="choose one of these")
    made = WORKLOADS[name]
    if layers is None:
        return made
    if layers < 1:
        raise OptionError("layers", got=str(layers), expected="at least 1", fix="ask for more")
    return replace(made, config=dict(made.config) | {"num_hidden_layers": layers}, limit_bytes={})


def write_workload(directory: Path, name: str, *, layers: int | None = None, seed: int = 0) -> Path:
    """The model `name` in `directory`, written unless it is there already; same arguments, same bytes.

    layers: by default as many as the workload has. Takes memory for the largest tensor. Raises as `workload`
    does, DestinationExistsError if something else is in the way.
    """
    made = workload(name, layers)
    described = json.dumps(dict(made.config) | {"endor_workload": f"{name}, seed {seed}"}, indent=2)
    marker = directory / "endor_workload.json"
    if marker.is_file() and marker.read_text() == described:  # written last: the rest is there
        return directory
    places = _infos(made.config)
    names = {place: to_hf(made.config["model_type"], place) for place in places}
    infos = {names[place]: info for place, info in places.items()}
    scales = {names[place] for place in places if place.tensor.endswith(".scale")}
    files = {"config.json": json.dumps(dict(made.config), indent=2).encode()}
    files |= {"tokenizer.json": byte_tokenizer().encode()}
    write_safetensors(
        directory,
        _tensors(infos, scales=scales, seed=seed),
        infos=infos,
        files=files,
        shard_bytes=made.shard_bytes,
    )
    marker.write_text(described)
    return directory


def _infos(config: Mapping[str, Any]) -> dict[Place, TensorInfo]:
    """Shape and dtype of every tensor, in the order of the records."""
    shapes = models.part_shapes(models.decoder(models.from_hf(config)))
    return {
        place: TensorInfo(shapes[place.record][place.tensor], DTYPE)
        for place in expected_places(config["model_type"], config)
    }


def _tensors(
    infos: Mapping[str, TensorInfo], *, scales: Collection[str], seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Matrices of spread 1/√inputs, scales of norms around one, biases around zero."""
    for index, (name, info) in enumerate(infos.items()):
        random = np.random.default_rng([seed, index])
        mean = 1.0 if name in scales else 0.0
        spread = info.shape[1] ** -0.5 if len(info.shape) == 2 else 0.1
        array = np.empty(info.shape, dtype_from_name(info.dtype))
        flat = array.reshape(-1)
        for start in range(0, flat.size, BLOCK_ELEMENTS):
            block = flat[start : start + BLOCK_ELEMENTS]
            block[:] = mean + np.float32(spread) * random.standard_normal(block.size, np.float32)
        yield name, array


def byte_tokenizer() -> str:
    """A tokenizer.json with one token per byte: enough to give a prompt; larger ids have no text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return made.to_str()


def make_whole(path: Path, make: Callable[[Path], object]) -> None:
    """What `make` makes at a path; under another name until it is whole."""
    making = path.with_name(f"{path.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    make(making)
    making.rename(path)
