"""What the plan says about memory: bounds on what XLA takes inside a step, and on what the process takes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import endor_jax as endor
from endor_jax import models
from endor_jax.arrays import array_bytes
from endor_jax.conversion.estimate import estimate_config
from endor_jax.format.encode import with_escapes
from endor_jax.format.layout import FieldLayout, RecordLayout
from endor_jax.format.record import Record
from endor_jax.generate import steps
from endor_jax.generate.placement import CHUNK, fixed_costs, geometry, pass_records
from endor_jax.models import KVCache
from tests.generate.budgets import plan_at, smallest
from tests.generate.test_compilations import SMOLLM2, write_large

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": SMOLLM2,
    "stories15m": SMOLLM2
    | {
        "vocab_size": 32000,
        "hidden_size": 288,
        "intermediate_size": 768,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    },
    "1b": SMOLLM2
    | {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "7b": SMOLLM2
    | {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
    "opt-125m": {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
    },
}


def words_of(layout: RecordLayout, sizes: list[int]) -> Record:
    """A record without data, with as many escapes as trained weights have: scattering takes memory."""
    escapes = {
        name: tensor.rows * tensor.columns // 100 if isinstance(tensor, FieldLayout) else 0
        for name, tensor in layout.tensors
    }
    words = tuple(jax.ShapeDtypeStruct((size // 4,), jnp.uint32) for size in sizes)
    return Record(words, with_escapes(layout, escapes))


def temporary_bytes(lowered: Any) -> int:
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("name", "dtype", "context", "batch"),
    [
        ("smollm2", "bfloat16", 512, 1),
        ("smollm2", "float32", 2048, 1),
        ("stories15m", "bfloat16", 2048, 8),
        ("1b", "bfloat16", 512, 8),
        ("7b", "bfloat16", 512, 1),
        ("opt-125m", "float32", 512, 64),
    ],
)
def test_steps_take_no_more_than_the_plan_has_for_them(name, dtype, context, batch):
    config = SHAPES[name] | {"num_hidden_layers": 1}
    manifest = estimate_config(config, dtype=dtype, sparsity=0.5)
    decoder = models.decoder(models.from_hf(config))
    shape = geometry(decoder.config, dtype, context, batch)
    costs = dict(fixed_costs(manifest, shape, shares_memory=True).device)
    planned = costs["activations"] + costs["step temporaries"]
    layer, *_, head = (
        words_of(record.layout, [part.buffer_bytes for part in record.parts])
        for record in pass_records(manifest)
    )
    rows = shape.rows
    kept = jax.ShapeDtypeStruct(
        (rows, shape.capacity, decoder.config.kv_heads, decoder.config.head_dim), dtype
    )
    cache = jax.eval_shape(models.as_bits, KVCache.tree_unflatten(None, (kept, kept)))

    def x(count: int, time: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, time, decoder.config.hidden_size), dtype)

    def integers(*dimensions: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dimensions, jnp.int32)

    lowered = [
        steps.block_step.lower(decoder, layer, x(rows, 1), cache, integers(rows)),
        steps.prompt_step.lower(decoder, layer, x(1, CHUNK), cache, integers(1), integers()),
        steps.head_step.lower(head, x(rows, 1)),
        steps.head_step.lower(head, x(1, CHUNK)),
    ]
    # The chunks of all prompts before and after a layer are arguments and results of a step.
    planned -= 2 * array_bytes((shape.positions, decoder.config.hidden_size), dtype)
    most = max(map(temporary_bytes, lowered))
    print(f"{name} {dtype} {context}: {most / 2**20:.1f} MiB taken, {planned / 2**20:.1f} MiB planned")
    assert most <= planned <= 2.2 * most


def test_a_longer_context_costs_cache_and_activations(llama):
    short, long = (plan_at(llama, 2**40, 2**40, context=context).fixed.device for context in (128, 512))
    grown = {name for (name, before), (_, after) in zip(short, long, strict=True) if after > before}
    assert grown == {"KV cache", "activations", "step temporaries"}  # the scores, in a model this small


@pytest.mark.slow
def test_the_process_takes_less_with_a_smaller_budget(tmp_path):
    config = SMOLLM2 | {"vocab_size": 8192, "max_position_embeddings": 512, "num_hidden_layers": 14}
    source = write_large(tmp_path / "source", config)
    endor.convert(source, tmp_path / "dst", dtype="float32")
    device, host = smallest(tmp_path / "dst", context=256)
    code = (
        "import sys, json, endor_jax\n"
        "path, device, host = sys.argv[1], *map(int, sys.argv[2:])\n"
        "with endor_jax.load(path, context=256, device_memory=device, host_memory=host) as model:\n"
        "    made = model.complete([5] * 200, max_tokens=4)\n"
        "plan = model.plan\n"
        "planned = plan.device_bytes + plan.host_bytes\n"
        "print(json.dumps([made.token_ids, made.statistics.peak_host_bytes, planned]))\n"
    )
    results = []
    for budget in ((2**40, 2**40), (device, host)):
        command = [sys.executable, "-c", code, str(tmp_path / "dst"), *map(str, budget)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout))
    (ids, whole, planned_whole), (small_ids, small, planned_small) = results
    print(f"peak {whole / 2**20:.0f} MiB resident, {small / 2**20:.0f} MiB streamed;")
    print(f"planned {planned_whole / 2**20:.0f} and {planned_small / 2**20:.0f} MiB")
    assert ids == small_ids
    # The rest is Python, JAX and its compiler, which need the same for both.
    assert whole - small > 0.7 * (planned_whole - planned_small) > 50 * 2**20
