"""Tiny configs of the families, random parameters for them, and a whole model made of decoder functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from endor_jax import models
from endor_jax.models.rope import Rope

LLAMA = models.LlamaConfig(
    vocabulary_size=61,
    hidden_size=32,
    intermediate_size=48,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    max_positions=40,
    norm_epsilon=1e-5,
    rope=Rope(theta=10_000.0),
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    tied_head=False,
)
OPT = models.OptConfig(
    vocabulary_size=61,
    hidden_size=32,
    intermediate_size=48,
    layers=3,
    heads=4,
    max_positions=40,
    tied_head=True,
)


CONFIGS = {
    "llama": LLAMA,
    # With a window that is shorter than the sequences of the tests, and than some of their chunks.
    "qwen3": dataclasses.replace(LLAMA, qkv_bias=False, head_norms=True, window=6),
    "opt": OPT,
    "opt-350m": dataclasses.replace(OPT, projected_size=24, pre_norm=False, final_norm=False),
    "opt-bare": dataclasses.replace(OPT, bias=False, affine_norms=False, activation="gelu"),
}


@pytest.fixture(params=["llama", "opt"])
def config(request: pytest.FixtureRequest) -> models.LlamaConfig | models.OptConfig:
    """Tests of what may differ between the variants ask for more of CONFIGS."""
    return CONFIGS[request.param]


def random_params(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, jax.Array]:
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(random.normal(0, 0.3, shape).astype(np.float32)) for name, shape in shapes.items()
    }


@dataclass
class Model:
    """All parameters of a model, run layer by layer; `traces` counts how often each function was traced."""

    decoder: models.Decoder
    stem: dict[str, jax.Array]
    layers: list[dict[str, jax.Array]]
    final: dict[str, jax.Array]
    embedding: np.ndarray
    head: np.ndarray
    traces: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stem, self._block, self._final = (
            self._counted(function) for function in (models.stem, models.block, models.final)
        )

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: object) -> Any:
            self.traces[function.__name__] = self.traces.get(function.__name__, 0) + 1
            return function(self.decoder, *arguments)

        return jax.jit(counted)

    def x(self, ids: np.ndarray) -> jax.Array:
        """What the first block takes, of sequences that begin with `ids`."""
        return self._stem(self.stem, jnp.asarray(self.embedding[ids]), jnp.zeros(len(ids), jnp.int32))

    def caches(self, *, batch: int, capacity: int) -> list[models.KVCache]:
        config = self.decoder.config
        return [
            models.create_cache(
                batch=batch,
                capacity=capacity,
                kv_heads=config.kv_heads,
                head_dim=config.head_dim,
                dtype=self.embedding.dtype,
            )
            for _ in self.layers
        ]

    def logits(self, ids: np.ndarray, caches: list[models.KVCache], *, start: int | np.ndarray) -> np.ndarray:
        """(batch, time, vocabulary); writes positions start ... into `caches`, in place of the old ones."""
        position = jnp.asarray(np.broadcast_to(start, len(ids)), jnp.int32)
        x = self._stem(self.stem, jnp.asarray(self.embedding[ids]), position)
        for i, params in enumerate(self.layers):
            x, caches[i] = self._block(params, x, caches[i], position)
        x = self._final(self.final, x)
        return np.asarray(x, np.float32) @ self.head.astype(np.float32).T


@pytest.fixture(scope="session")
def make_model() -> type[Model]:
    return Model


@pytest.fixture
def model(config: models.LlamaConfig | models.OptConfig) -> Model:
    decoder = models.decoder(config)
    embedding = random_params({"": (config.vocabulary_size, config.embedding_size)}, 1)[""]
    return Model(
        decoder=decoder,
        stem=random_params(decoder.stem_shapes, 2),
        layers=[random_params(decoder.block_shapes, 3 + i) for i in range(config.layers)],
        final=random_params(decoder.final_shapes, 0),
        embedding=np.asarray(embedding),
        head=np.asarray(embedding),
    )
