"""From GGUF metadata to tokenizer files: flags, special tokens, templates, and lists that do not agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.sources.gguf_tokenizer import tokenizer_files
from endor_jax.text import Tokenizer, load_tokenizer
from tests.text.tiny_vocabularies import GPT2_METADATA as GPT2
from tests.text.tiny_vocabularies import SPM_METADATA as SPM


def files(metadata: dict[str, Any], **others: str) -> dict[str, bytes]:
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return tokenizer_files(
        named | {f"tokenizer.{key}": value for key, value in others.items()}, where="x.gguf"
    )


def load(directory: Path, metadata: dict[str, Any], **others: str) -> Tokenizer:
    for name, data in files(metadata, **others).items():
        (directory / name).write_bytes(data)
    return load_tokenizer(directory)


def test_byte_level(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, GPT2)
    text = "he he<think>12<|end|>é"
    names = [tokenizer.backend.id_to_token(index) for index in tokenizer.encode(text)]
    assert names == ["he", "Ġhe", "<think>", "1", "2", "<|end|>", "Ã", "©"]
    assert tokenizer.decode(tokenizer.encode(text)) == "he he<think>12é"
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert tokenizer.backend.get_vocab_size() == len(GPT2["tokens"])
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, {1})


def test_sentencepiece(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, SPM)
    names = [tokenizer.backend.id_to_token(index) for index in tokenizer.encode("abc 😀")]
    assert names == ["<s>", "▁abc", "▁", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert tokenizer.decode(tokenizer.encode("abc 😀")) == "abc 😀"
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {2})


@pytest.mark.parametrize(
    ("metadata", "start", "end"),
    [
        (GPT2, [], []),
        (GPT2 | {"pre": "llama-bpe"}, [0], []),
        (GPT2 | {"pre": "llama-bpe", "add_bos_token": False}, [], []),
        (GPT2 | {"add_bos_token": True, "add_eos_token": True}, [0], [1]),
        (SPM, [1], []),
        (SPM | {"add_bos_token": False, "add_eos_token": True}, [], [2]),
    ],
)
def test_start_and_end_tokens(
    tmp_path: Path, metadata: dict[str, Any], start: list[int], end: list[int]
) -> None:
    """By our flags and by the template in tokenizer.json alike."""
    tokenizer = load(tmp_path, metadata)
    inside = tokenizer.encode("he", add_special=False)
    assert tokenizer.encode("he") == [*start, *inside, *end]
    assert tokenizer.backend.encode("he").ids == [*start, *inside, *end]


def test_chat_template_and_config() -> None:
    config = json.loads(files(GPT2, chat_template="{{ x }}")["tokenizer_config.json"])
    assert config["chat_template"] == "{{ x }}"
    assert (config["bos_token"], config["eos_token"]) == ("<|start|>", "<|end|>")
    assert (config["unk_token"], config["pad_token"]) == (None, None)


def test_file_without_vocabulary() -> None:
    assert tokenizer_files({}, where="x.gguf") == {}
    assert files({"model": "no_vocab"}) == {}


def test_unlisted_rules_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="tokenizer model 'bert'"):
        files({"model": "bert"})
    with pytest.raises(UnsupportedError, match=r"pre-tokenizer 'qwen2'.*smollm"):
        files(GPT2 | {"pre": "qwen2"})
    with pytest.raises(UnsupportedError, match=r"no tokenizer\.ggml\.pre"):
        files({key: value for key, value in GPT2.items() if key != "pre"})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (GPT2 | {"tokens": None}, "no list tokenizer.ggml.tokens"),
        (GPT2 | {"merges": None}, "no list tokenizer.ggml.merges"),
        (GPT2 | {"merges": ["h  e"]}, "merge 'h  e'"),
        (GPT2 | {"merges": ["zz top"]}, "merges that do not fit"),
        (GPT2 | {"token_type": [1]}, "1 token types"),
        (GPT2 | {"tokens": ["a", "a"], "token_type": [1, 1]}, "token 'a' twice"),
        (GPT2 | {"bos_token_id": 10**6}, "bos token 1000000"),
        (SPM | {"scores": [0.0]}, "1 scores"),
    ],
)
def test_lists_that_do_not_agree(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"tokenizer of x.gguf.*{message}"):
        files(metadata)
