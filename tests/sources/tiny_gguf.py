"""A tiny random Llama as a GGUF file, written with llama.cpp's own writer and by its own rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, VOCABULARY = 2, 4, 2, 8, 32, 64, 48

Edit = Callable[[gguf.GGUFWriter], None]


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `LlamaModel.permute`, which its converter applies to query and key."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def hf_tensors(*, bias: bool = False, tied: bool = True) -> dict[str, np.ndarray]:
    """Random tensors of the tiny Llama by Hugging Face name."""
    generator = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        projections = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
        for name, heads in projections.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = (heads * HEAD_DIM, HIDDEN)
            if bias:
                shapes[f"{at}self_attn.{name}_proj.bias"] = (heads * HEAD_DIM,)
        shapes[f"{at}self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        if bias:
            shapes[f"{at}self_attn.o_proj.bias"] = (HIDDEN,)
        shapes[f"{at}mlp.gate_proj.weight"] = shapes[f"{at}mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[f"{at}mlp.down_proj.weight"] = (HIDDEN, INNER)
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gguf_name(hf_name: str) -> str:
    """By the name map of the gguf package, which is llama.cpp's."""
    stem, kind = hf_name.rsplit(".", 1)
    found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS).get_name(stem)
    assert found is not None
    return f"{found}.{kind}"


def add_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    *edits: Edit,
    architecture: str = "llama",
    metadata: Edit = add_metadata,
    **kinds: Any,
) -> Path:
    """Write Hugging Face tensors as llama.cpp's converter would; each of `edits` may add to the file.

    `kinds` gives the block type of tensors by the last part of their module's name, float32 otherwise.
    """
    writer = gguf.GGUFWriter(path, architecture)
    metadata(writer)
    for name, array in tensors.items():
        heads = HEADS if ".q_proj." in name else KV_HEADS if ".k_proj." in name else None
        stored = permute(array, heads) if heads else array
        kind = kinds.get(name.rsplit(".", 2)[-2])
        raw = stored if kind is None else gguf.quantize(stored, kind)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=kind)
    for edit in edits:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
