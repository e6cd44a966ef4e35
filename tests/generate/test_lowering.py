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
from tests.lowering import abstract, cuda_text


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
