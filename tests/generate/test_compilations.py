"""One compilation of the layer step for decoding and one for prompts, whatever the number of layers."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import endor_jax as endor
from endor_jax.arrays import dtype_from_name
from endor_jax.sources.mapping import expected_places, to_hf
from endor_jax.sources.safetensors_writer import write_safetensors
from endor_jax.sources.source import TensorInfo
from tests.generate.budgets import smallest
from tests.tiny_models import LLAMA, OPT, tensor_shapes, write_tiny

pytestmark = pytest.mark.usefixtures("compiled_quickly")
LAYERS = os.environ.get("ENDOR_TEST_LAYERS")
"""Of the two large models, where it is set. All of them, 30 and 22, take a minute longer on two cores."""

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": int(LAYERS or 8),  # of 30
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
ONE_BILLION = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": min(22, int(LAYERS or 3)),
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


@contextmanager
def counted_compilations() -> Iterator[Counter[str]]:
    """Counts XLA compilations by the name of the jitted function, from an empty cache."""
    counts: Counter[str] = Counter()

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := re.match(r"Finished XLA compilation of jit\((\w+)\)", record.getMessage()):
                counts[match[1]] += 1

    logger, handler = logging.getLogger("jax"), Counting()
    jax.clear_caches()
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield counts
    finally:
        logger.removeHandler(handler)


def write_large(directory: Path, config: dict[str, Any]) -> Path:
    """bfloat16 weights of any size, one tensor in memory at a time: shapes have one random base each."""
    shapes = tensor_shapes(config)
    random = np.random.default_rng(0)
    places = {to_hf("llama", place): place for place in expected_places("llama", config)}
    infos = {
        name: TensorInfo(shapes[place.record.split(".")[0]][place.tensor], "bfloat16")
        for name, place in places.items()
    }
    bases: dict[tuple[int, ...], np.ndarray] = {}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for i, (name, info) in enumerate(infos.items()):
            if info.shape not in bases:
                values = random.standard_normal(info.shape, np.float32) * info.shape[-1] ** -0.5
                bases[info.shape] = values.astype(dtype_from_name("bfloat16"))
            yield name, np.roll(bases[info.shape], i, axis=0)

    files = {"config.json": json.dumps(config).encode()}
    write_safetensors(directory, tensors(), infos=infos, files=files)
    return directory


def count_of_generating(path: Path, *, resident: bool) -> Counter[str]:
    """Compilations of 5 tokens after a prompt of 200, all resident or all streamed."""
    device, host = smallest(path, context=256)
    budgets = {} if resident else {"device_memory": device, "host_memory": host}
    endor.load(path, context=256, **budgets).close()  # what is measured of this machine compiles too, once
    with counted_compilations() as counts, endor.load(path, context=256, **budgets) as model:
        assert model.plan.count("device") == (len(model.plan.tiers) if resident else 0)
        assert len(list(model.generate([5] * 200, max_tokens=5))) == 5
    return counts


def check(counts: Counter[str]) -> None:
    assert counts["block_step"] == counts["prompt_step"] == 1, counts
    # The head sees one token only: also after a prompt.
    assert counts["head_step"] == 1, counts
    assert counts["final_step"] == 1, counts
    assert counts["stem_step"] <= 2, counts


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_tiny_models(tmp_path, config, resident):
    source = write_tiny(tmp_path / "source", config | {"num_hidden_layers": 8})
    endor.convert(source, tmp_path / "dst", dtype="bfloat16", prune="magnitude", sparsity=0.5)
    check(count_of_generating(tmp_path / "dst", resident=resident))


def test_another_prompt_compiles_nothing(llama):
    with endor.load(llama, context=290) as model:
        for chunk in (32, 64, 200):  # shorter prompts pass in shorter chunks
            list(model.generate([5] * chunk, max_tokens=3))
        with counted_compilations_kept() as counts:
            for length in (1, 2, 31, 33, 65, 127, 129, 250):
                list(model.generate([6] * length, max_tokens=3))
        assert not counts, counts


def test_micro_batches_share_their_compilations(llama):
    prompts = [[5] * length for length in range(1, 8)]  # in two micro-batches of three, and one of one
    with counted_compilations() as counts, endor.load(llama, context=290, batch=7, micro_batch=3) as model:
        assert len(dict(model.complete_batch(prompts, max_tokens=3))) == 7
    assert counts["block_step"] == counts["prompt_step"] == counts["head_step"] == 1, counts


@contextmanager
def counted_compilations_kept() -> Iterator[Counter[str]]:
    """The same without emptying the cache first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "clear_caches", lambda: None)
        with counted_compilations() as counts:
            yield counts


@pytest.mark.slow
def test_smollm2(tmp_path):
    source = write_large(tmp_path / "source", SMOLLM2)
    endor.convert(source, tmp_path / "dst", prune="magnitude", sparsity=0.5)
    check(count_of_generating(tmp_path / "dst", resident=False))


@pytest.mark.slow
def test_a_llama_of_one_billion(tmp_path):
    source = write_large(tmp_path / "source", ONE_BILLION)
    conversion = endor.convert(source, tmp_path / "dst", prune="magnitude", sparsity=0.5)
    (source / "model.safetensors").unlink(missing_ok=True)
    weights = conversion.dense_bytes // 2
    print(f"{weights:,} weights, {conversion.stored_bytes:,} bytes stored")
    check(count_of_generating(tmp_path / "dst", resident=False))
