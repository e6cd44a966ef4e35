"""A small Llama made here: trained for a minute on Python's own documentation, saved as Hugging Face files.

For `endor demo --offline`. The layers are those of `endor_jax.models`, trained through the very functions
that generation uses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from endor_jax import models
from endor_jax.sources.mapping import Place, to_hf
from endor_jax.sources.safetensors_writer import write_safetensors
from endor_jax.sources.source import TensorInfo

VOCABULARY, TIME, BATCH, STEPS = 1024, 128, 4, 220
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,  # of fewer, all would be in flight at once, and nothing read again
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}

Weights = dict[str, dict[str, jax.Array]]
"""Record -> tensor -> array, as in a checkpoint."""


def make_model(directory: Path, *, progress: Callable[[str, int, int], None]) -> None:
    """Trains and writes config.json, tokenizer.json and model.safetensors; the same bytes every time."""
    text = "\n".join(topics.values())
    tokenizer = _tokenizer(text)
    ids = np.array(tokenizer.encode(text).ids, np.int32)
    weights = _train(_initial(), ids, progress)
    tensors = {
        to_hf("llama", Place(record, name)): np.asarray(array)
        for record, named in weights.items()
        for name, array in named.items()
    }
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    files = {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": tokenizer.to_str().encode()}
    write_safetensors(directory, tensors.items(), infos=infos, files=files)


def _tokenizer(text: str) -> tokenizers.Tokenizer:
    """A byte-level BPE of VOCABULARY tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def _initial() -> Weights:
    """Matrices normal with standard deviation 1/√inputs, norms one."""
    decoder = models.decoder(models.from_hf(CONFIG))
    random = np.random.default_rng(0)

    def array(shape: tuple[int, ...]) -> jax.Array:
        scale = shape[-1] ** -0.5
        return jnp.asarray(random.normal(0, scale, shape) if len(shape) == 2 else np.ones(shape), jnp.float32)

    shapes = {"embedding": {"weight": (VOCABULARY, decoder.config.hidden_size)}}
    shapes |= {f"layers.{i}": decoder.block_shapes for i in range(decoder.config.layers)}
    shapes |= {"final": decoder.final_shapes}
    return {record: {name: array(shape) for name, shape in named.items()} for record, named in shapes.items()}


def _loss(weights: Weights, tokens: jax.Array) -> jax.Array:
    """Mean cross-entropy of the next token; tokens: (batch, time + 1) int32."""
    decoder = models.decoder(models.from_hf(CONFIG))
    config, start = decoder.config, jnp.zeros(tokens.shape[0], jnp.int32)
    x = models.stem(decoder, {}, weights["embedding"]["weight"][tokens[:, :-1]], start)
    for i in range(config.layers):
        cache = models.create_cache(
            batch=tokens.shape[0],
            capacity=tokens.shape[1] - 1,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=jnp.float32,
        )
        x, _ = models.block(decoder, weights[f"layers.{i}"], x, cache, start)
    x = models.final(decoder, weights["final"], x)
    logits = x @ weights["embedding"]["weight"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def _train(weights: Weights, ids: np.ndarray, progress: Callable[[str, int, int], None]) -> Weights:
    """Adam with a cosine schedule over random windows of the text."""
    optimizer = optax.adamw(optax.cosine_decay_schedule(4e-3, STEPS), weight_decay=0.01)

    @jax.jit
    def update(weights: Weights, state: Any, tokens: jax.Array) -> tuple[Weights, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(_loss)(weights, tokens)
        change, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, change), state, loss  # type: ignore[return-value]

    state = optimizer.init(weights)
    random = np.random.default_rng(0)
    for step in range(STEPS):
        starts = random.integers(0, len(ids) - TIME - 1, BATCH)
        tokens = jnp.asarray(np.stack([ids[first : first + TIME + 1] for first in starts]))
        weights, state, loss = update(weights, state, tokens)
        progress(f"training, loss {float(loss):.2f}", step + 1, STEPS)
    return weights
