"""The steps of a whole model lower for CUDA on a machine without one."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import endor_jax as endor
from endor_jax import models
from endor_jax.generate import steps
from endor_jax.generate.placement import CHUNK, pass_records
from endor_jax.streaming.devices import first_devices
from endor_jax.streaming.share import Share
from tests.lowering import abstract, cuda_text
from tests.tiny_models import LLAMA, write_tiny


@pytest.mark.parametrize("time", [1, CHUNK])
def test_block_and_head_lower_for_cuda(checkpoint: Path, time: int) -> None:
    with endor.open(checkpoint) as opened:
        decoder = models.decoder(models.from_hf(opened.manifest.model or {}))
        config = decoder.config
        x = jax.ShapeDtypeStruct((1, time, config.hidden_size), jnp.bfloat16)
        start = jax.ShapeDtypeStruct((1,), jnp.int32)
        shape = (1, 2 * CHUNK, config.kv_heads, config.head_dim)
        cache = models.as_bits(models.KVCache(*(jnp.zeros(shape, jnp.bfloat16) for _ in range(2))))
        layer = abstract(opened.read_record(opened.manifest.record("layers.0")))
        if time == 1:
            text = cuda_text(steps.block_step, decoder, layer, x, abstract(cache), start)
        else:
            row = jax.ShapeDtypeStruct((), jnp.int32)
            text = cuda_text(steps.prompt_step, decoder, layer, x, abstract(cache), start, row)
        assert "popcnt" in text
        # On a GPU products take bfloat16 as it is; widening is for the CPU.
        assert "xbf16>) -> tensor" in text
        block = pass_records(opened.manifest)[-1]
        words = tuple(jax.ShapeDtypeStruct((part.buffer_bytes // 4,), jnp.uint32) for part in block.parts)
        head = endor.Record(words, block.layout)
        assert "dot_general" in cuda_text(steps.head_step, head, x)
        fold = steps.Fold(jnp.zeros(time, jnp.int32), *(jnp.zeros(time) for _ in range(3)))
        first = jax.ShapeDtypeStruct((), jnp.int32)
        assert "exponential" in cuda_text(steps.fold_step, head, x, abstract(fold), first, 320)


def test_a_block_over_a_mesh_lowers_for_cuda_with_four_gathers(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "source", LLAMA | {"num_hidden_layers": 1}, dtype="bfloat16")
    endor.convert(source, tmp_path / "2.endor", prune="magnitude", sparsity=0.5, shards=2)
    mesh = first_devices(2)
    with endor.open(tmp_path / "2.endor") as opened:
        decoder = models.decoder(models.from_hf(opened.manifest.model or {}))
        layer = pass_records(opened.manifest, Share(2, (0, 1)))[0]
    words = 2 * layer.parts[0].buffer_bytes // 4
    record = endor.Record((jax.ShapeDtypeStruct((words,), jnp.uint32),), layer.layout)
    x = jax.ShapeDtypeStruct((1, 1, decoder.config.hidden_size), jnp.bfloat16)
    shape = (1, CHUNK, decoder.config.kv_heads, decoder.config.head_dim)
    cache = models.as_bits(models.KVCache(*(jnp.zeros(shape, jnp.bfloat16) for _ in range(2))))
    start = jax.ShapeDtypeStruct((1,), jnp.int32)
    text = cuda_text(steps.block_step, decoder, record, x, abstract(cache), start, mesh=mesh)
    # Of the mixed heads, the output, the MLP's hidden values, its output; queries, keys and values stay.
    assert text.count("stablehlo.all_gather") == 4
    assert "popcnt" in text
