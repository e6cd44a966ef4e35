"""Named model shapes with random weights, written as a Hugging Face directory one tensor at a time.

The weights are normal with the spread of trained ones, so that codecs, sizes and times are those of a real
model of the shape; the text that such a model generates means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Workload:
    """A model shape: its config.json, how many bytes there are in one shard, and what may be taken of it.

    limit_bytes: by verb, the resident memory that this library promises to stay under.
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
        limit_bytes={"convert": 16 * 2**30 // 10, "generate": 12 * 2**30 // 10},
    ),
    "llama-10m": Workload(  # the same in small, for tests
        _LLAMA
        | {
            "vocab_size": 2048,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 13,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
        },
        shard_bytes=5_000_000,
        limit_bytes={},
    ),
}


def workload(name: str) -> Workload:
    """The workload called `name`. Raises OptionError, naming all, if there is none."""
    if name not in WORKLOADS:
        raise OptionError("model", got=repr(name), expected=", ".join(WORKLOADS), fix="choose one of these")
    return WORKLOADS[name]


def write_workload(directory: Path, name: str, *, seed: int = 0) -> Path:
    """The model `name` in `directory`, written unless it is there already; same name and seed, same bytes.

    Takes memory for the largest tensor. Raises OptionError for an unknown name, DestinationExistsError if
    something else is in the way.
    """
    made = workload(name)
    described = json.dumps(dict(made.config) | {"endor_workload": f"{name}, seed {seed}"}, indent=2)
    marker = directory / "endor_workload.json"
    if marker.is_file() and marker.read_text() == described:  # written last: the rest is there
        return directory
    infos = {to_hf("llama", place): info for place, info in _infos(made.config).items()}
    files = {"config.json": json.dumps(dict(made.config), indent=2).encode()}
    files |= {"tokenizer.json": byte_tokenizer().encode()}
    write_safetensors(
        directory, _tensors(infos, seed), infos=infos, files=files, shard_bytes=made.shard_bytes
    )
    marker.write_text(described)
    return directory


def _infos(config: Mapping[str, Any]) -> dict[Place, TensorInfo]:
    """Shape and dtype of every tensor, in the order of the records."""
    shapes = models.part_shapes(models.decoder(models.from_hf(config)))
    return {
        place: TensorInfo(shapes[place.record][place.tensor], DTYPE)
        for place in expected_places("llama", config)
    }


def _tensors(infos: Mapping[str, TensorInfo], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    for index, (name, info) in enumerate(infos.items()):
        random = np.random.default_rng([seed, index])
        matrix = len(info.shape) == 2
        mean, spread = (0.0, info.shape[1] ** -0.5) if matrix else (1.0, 0.1)
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
