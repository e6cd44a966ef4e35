"""Tiny random models as Hugging Face directories, written without torch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from endor_jax import models
from endor_jax.arrays import dtype_from_name
from endor_jax.sources.mapping import expected_places, to_hf
from endor_jax.sources.safetensors_writer import SHARD_BYTES, write_safetensors
from endor_jax.sources.source import TensorInfo

END = 256
"""The end-of-text id; ids below are bytes, those above mean nothing to the tokenizer."""

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": END,
}
OPT: dict[str, Any] = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 320,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 300,
    "word_embed_proj_dim": 64,
    "eos_token_id": END,
}
OPT_350M = OPT | {"word_embed_proj_dim": 48, "do_layer_norm_before": False}
"""Norms behind the sums, embeddings narrower than x, no final norm."""
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 24}


def write_tiny(
    directory: Path,
    config: dict[str, Any] = LLAMA,
    *,
    dtype: str = "float32",
    seed: int = 0,
    tokenizer: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """A model of this config with random weights in `directory`; the same arguments, the same bytes."""
    tensors = random_tensors(config, dtype=dtype, seed=seed)
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    files = {"config.json": json.dumps(config).encode()}
    files |= {"tokenizer.json": byte_tokenizer().encode()} if tokenizer else {}
    write_safetensors(directory, tensors.items(), infos=infos, files=files, shard_bytes=shard_bytes)
    return directory


def random_tensors(config: dict[str, Any], *, dtype: str = "float32", seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of a model by its Hugging Face name: matrices of spread 1/√inputs, vectors around one."""
    family = config["model_type"]
    random = np.random.default_rng(seed)
    target = dtype_from_name(dtype)
    result: dict[str, np.ndarray] = {}
    shapes = tensor_shapes(config)
    for place in expected_places(family, config):
        shape = shapes[place.record.split(".")[0]][place.tensor]
        if len(shape) == 2:
            # A large spread makes attention and logits decide for something.
            values = random.normal(0, 2 * shape[1] ** -0.5, shape)
        else:
            values = (1.0 if "norm" in place.tensor and "scale" in place.tensor else 0.0) + random.normal(
                0, 0.1, shape
            )
        result[to_hf(family, place)] = values.astype(target)
    return result


def tensor_shapes(config: dict[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Tensor shapes by kind of record."""
    parsed = models.from_hf(config)
    decoder = models.decoder(parsed)
    matrix = {"weight": (parsed.vocabulary_size, parsed.embedding_size)}
    return {
        "embedding": matrix,
        "stem": decoder.stem_shapes,
        "layers": decoder.block_shapes,
        "final": decoder.final_shapes,
        "head": matrix,
    }


@cache
def byte_tokenizer() -> str:
    """A tokenizer.json with a token per byte, so that random ids are mostly no UTF-8, and an end token."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    assert made.token_to_id("<end>") == END
    return made.to_str()
