"""GGUF files of Llama models, read as if they were Hugging Face checkpoints in float32.

llama.cpp renames the tensors and permutes the rows of the query and key projections, because it rotates
neighbouring pairs where Hugging Face rotates halves; both are undone. Quantised blocks are expanded with the
`gguf` package (the optional extra of that name).
Sources: llama.cpp, convert_hf_to_gguf.py (`LlamaModel.permute`, `modify_tensors`) and docs/gguf.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from endor_jax.arrays import round_up
from endor_jax.errors import InvalidInputError, MissingDependencyError, UnsupportedError
from endor_jax.sources.brief import brief, brief_text
from endor_jax.sources.byte_range import read_range
from endor_jax.sources.gguf_config import generation_config, llama_config
from endor_jax.sources.gguf_header import GgufHeader, GgufTensor, parse_gguf_header
from endor_jax.sources.gguf_rope import llama3_scaling
from endor_jax.sources.gguf_tokenizer import tokenizer_files
from endor_jax.sources.source import TensorInfo, no_such_tensor

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_PATTERN = re.compile(rf"blk\.([0-9]+)\.({'|'.join(LAYER_NAMES)})\.(weight|bias)")
_ROPE_DIVISORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufSource:
    """A `Source` over one GGUF file. The header is read when it is opened, tensor data only by `read`."""

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    header: GgufHeader = field(repr=False)
    stored_names: Mapping[str, str] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised to float32, in Hugging Face row order and in its own memory."""
        if name not in self.tensors:
            raise no_such_tensor(self.path, name)
        array = _dequantise(self.header, self.header.tensors[self.stored_names[name]])
        if ".q_proj." in name:
            return unpermute(array, self.config["num_attention_heads"])
        if ".k_proj." in name:
            return unpermute(array, self.config["num_key_value_heads"])
        return array

    def files(self) -> dict[str, bytes]:
        """Config files in Hugging Face form and, if the file holds a vocabulary, its tokenizer."""
        written = {
            "config.json": self.config,
            "generation_config.json": generation_config(self.header.metadata, where=str(self.path)),
        }
        return {
            **{name: (json.dumps(value, indent=2) + "\n").encode() for name, value in written.items()},
            **tokenizer_files(self.header.metadata, where=str(self.path)),
        }

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> GgufSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_gguf(path: Path) -> GgufSource:
    """Open a GGUF file of a Llama.

    Raises MissingDependencyError without the `gguf` package; UnsupportedError for other architectures,
    rope factors and block types; InvalidInputError for damaged files and tensors that no table lists.
    """
    gguf = _package()
    header = parse_gguf_header(path)
    where = str(path)
    config = llama_config(header.metadata, header.tensors.keys(), where=where)
    _check_tensors(gguf, header)
    config["rope_scaling"] = _rope_scaling(header, config)
    stored_names = {_translate(name, where): name for name in header.tensors if name != _ROPE_DIVISORS}
    tensors = {
        name: TensorInfo(header.tensors[stored].shape, "float32") for name, stored in stored_names.items()
    }
    for name in tensors:
        _check_heads(name, tensors[name], config, where=where)
    if (embedding := tensors.get(OTHER_NAMES["token_embd.weight"])) is not None:
        config["vocab_size"] = embedding.shape[0]
    return GgufSource(path=path, config=config, tensors=tensors, header=header, stored_names=stored_names)


def unpermute(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a GGUF query or key projection, (heads * size, ...) -> the same in Hugging Face's order.

    llama.cpp stored row 2j + p of each head from row p * size / 2 + j; this takes them back.
    """
    half = array.shape[0] // heads // 2
    pairs = array.reshape(heads, half, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)


def _package() -> ModuleType:
    try:
        return import_module("gguf")
    except ImportError as error:
        raise MissingDependencyError(
            "reading a GGUF file",
            got="no package `gguf`",
            expected="the optional extra `gguf`",
            fix="run: pip install 'endor_jax[gguf]'",
        ) from error


def _translate(name: str, where: str) -> str:
    """A GGUF tensor name -> the Hugging Face one."""
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    if match := _LAYER_PATTERN.fullmatch(name):
        return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.{match[3]}"
    raise InvalidInputError(
        where,
        got=f"tensor {brief(name)}, which no table lists",
        expected="the tensors of a Llama",
        fix="convert from the Hugging Face safetensors of this model instead",
    )


def _check_tensors(gguf: ModuleType, header: GgufHeader) -> None:
    """Block types can be expanded, and the data follow each other as ggml lays them out, inside the file."""
    expected = header.data_start
    for tensor in header.tensors.values():
        where = f"tensor {brief(tensor.name)} of {header.path}"
        kind, elements, block_bytes = _block(gguf, tensor, where)
        length = _stored_bytes(tensor, elements, block_bytes)
        # ggml reads no other layout; holes and overlaps are signs of damage.
        if tensor.shape[-1] % elements or tensor.offset != expected or expected + length > header.size:
            raise InvalidInputError(
                where,
                got=f"{kind} {tensor.shape} at byte {tensor.offset:,} of a file of {header.size:,}",
                expected=f"rows of whole blocks of {elements} from byte {expected:,}, inside the file",
                fix="the file is damaged or truncated: fetch it again",
            )
        expected = round_up(expected + length, header.alignment)


def _block(gguf: ModuleType, tensor: GgufTensor, where: str) -> tuple[str, int, int]:
    """Name, elements and bytes of a block of a tensor's type, if the package can expand it."""
    try:
        kind = gguf.GGMLQuantizationType(tensor.type_id)
        elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        # Not every type the package names has an expansion: one block of zeros tells, before hours of work.
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UnsupportedError(
            where,
            got=f"ggml type {tensor.type_id} ({brief_text(error)})",
            expected="one that the installed `gguf` package can expand",
            fix="run: pip install --upgrade gguf, or use another quantisation of this model",
        ) from error
    return kind.name, elements, block_bytes


def _check_heads(name: str, info: TensorInfo, config: Mapping[str, Any], *, where: str) -> None:
    """Rows can only be put back in order if there are as many as the heads have."""
    keys = {".q_proj.": "num_attention_heads", ".k_proj.": "num_key_value_heads"}
    for part, key in keys.items():
        rows = config[key] * config["head_dim"]
        if part in name and (info.shape[0] != rows or config["head_dim"] % 2):
            raise InvalidInputError(
                f"tensor {name!r} of {where}",
                got=f"{info.shape[0]} rows",
                expected=f"{rows}: {config[key]} heads of an even {config['head_dim']}",
                fix="the file contradicts itself: fetch it again",
            )


def _stored_bytes(tensor: GgufTensor, elements: int, block_bytes: int) -> int:
    return prod(tensor.shape) // elements * block_bytes


def _rope_scaling(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scaling that metadata state, or the one that stored divisors of frequencies amount to."""
    stated: dict[str, Any] | None = config["rope_scaling"]
    tensor = header.tensors.get(_ROPE_DIVISORS)
    if tensor is None:
        return stated
    where, half = f"tensor {_ROPE_DIVISORS!r} of {header.path}", config["head_dim"] // 2
    if tensor.shape != (half,):
        raise InvalidInputError(
            where,
            got=f"shape {tensor.shape}",
            expected=f"({half},), half the head size",
            fix="the file contradicts itself: fetch it again",
        )
    found = llama3_scaling(_dequantise(header, tensor), theta=config["rope_theta"], where=where)
    if stated and found:
        raise UnsupportedError(
            where,
            got=f"divisors of frequencies beside {stated['rope_type']} scaling",
            expected="one scaling",
            fix="convert from the Hugging Face safetensors of this model instead",
        )
    return stated or found


def _dequantise(header: GgufHeader, tensor: GgufTensor) -> np.ndarray:
    """`tensor.shape` float32."""
    gguf = _package()
    kind = gguf.GGMLQuantizationType(tensor.type_id)
    elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = read_range(
        header.path,
        offset=tensor.offset,
        length=_stored_bytes(tensor, elements, block_bytes),
        what=f"tensor {tensor.name!r}",
    )
    rows = data.reshape(*tensor.shape[:-1], tensor.shape[-1] // elements * block_bytes)
    # Infinite and NaN scales expand to infinite and NaN weights, which whoever prepares them looks for.
    with np.errstate(all="ignore"):
        return np.asarray(gguf.dequantize(rows, kind), np.float32).reshape(tensor.shape)
