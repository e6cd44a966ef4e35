"""Loading tokenizers: where start and end ids come from, what is added, files that are missing or broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.text import load_tokenizer


def put(directory: Path, name: str, value: Any) -> None:
    (directory / name).write_text(value if isinstance(value, str) else json.dumps(value))


def test_only_tokenizer_json_must_be_there(spm_directory: Path) -> None:
    (spm_directory / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(str(spm_directory))
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.chat_template) == (None, frozenset(), None)
    assert tokenizer.encode("abc")[0] == 1  # the template in tokenizer.json
    assert 1 not in tokenizer.encode("abc", add_special=False)


@pytest.mark.parametrize(
    ("generation", "model", "declared", "expected"),
    [
        (7, 8, None, {7}),
        ([7, 9], 8, None, {7, 9}),
        (None, 8, None, {8}),
        (None, [8, 9], None, {8, 9}),
        ([7], None, "</s>", {7, 2}),
        (None, None, {"content": "</s>", "lstrip": False}, {2}),
        (None, None, "<absent>", set()),
        (0, None, None, {0}),
    ],
)
def test_ids_that_end_a_text(
    spm_directory: Path, generation: Any, model: Any, declared: Any, expected: set[int]
) -> None:
    put(spm_directory, "generation_config.json", {"eos_token_id": generation})
    put(spm_directory, "config.json", {"eos_token_id": model})
    put(spm_directory, "tokenizer_config.json", {"eos_token": declared})
    assert load_tokenizer(spm_directory).eos_ids == expected


def test_start_id_without_a_start_token(spm_directory: Path) -> None:
    put(spm_directory, "tokenizer_config.json", {})
    put(spm_directory, "config.json", {"bos_token_id": 1})
    assert load_tokenizer(spm_directory).bos_id == 1
    put(spm_directory, "generation_config.json", {"bos_token_id": 2})
    assert load_tokenizer(spm_directory).bos_id == 2


@pytest.mark.parametrize(
    ("flags", "start", "end"),
    [
        ({}, [1], []),
        ({"add_bos_token": False}, [], []),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
        ({"add_eos_token": True}, [], [2]),
    ],
)
def test_flags_overrule_the_template(
    spm_directory: Path, flags: dict[str, bool], start: list[int], end: list[int]
) -> None:
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    put(spm_directory, "tokenizer_config.json", {**named, **flags})
    tokenizer = load_tokenizer(spm_directory)
    inside = tokenizer.encode("abc", add_special=False)
    assert tokenizer.encode("abc") == [*start, *inside, *end]


def test_flag_without_a_token_adds_nothing(spm_directory: Path) -> None:
    put(spm_directory, "tokenizer_config.json", {"add_bos_token": True})
    tokenizer = load_tokenizer(spm_directory)
    assert tokenizer.encode("abc") == tokenizer.encode("abc", add_special=False)


def test_saved_truncation_and_padding_are_not_ours(spm_directory: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(spm_directory / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.save(str(spm_directory / "tokenizer.json"))
    assert len(load_tokenizer(spm_directory).encode("a b c")) == 6


def test_advice_where_there_is_no_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"tokenizer\.json.*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "tokenizer.json"),
        ("tokenizer_config.json", "[1]", "JSON list"),
        ("config.json", "{", "config.json"),
        ("generation_config.json", '{"eos_token_id": ["</s>"]}', "eos_token_id"),
        ("generation_config.json", '{"eos_token_id": 1.5}', "eos_token_id 1.5"),
        ("generation_config.json", '{"eos_token_id": -1}', "eos_token_id -1"),
        ("config.json", "[" * 100_000, "config.json"),
        ("tokenizer.json", "[" * 100_000, "tokenizer.json"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template of type int"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}', "chat_template without names"),
        ("tokenizer_config.json", '{"chat_template": ["x"]}', "chat_template without names"),
    ],
)
def test_broken_files(spm_directory: Path, name: str, content: str, message: str) -> None:
    put(spm_directory, name, content)
    with pytest.raises(InvalidInputError, match=f"{message}.*fetch the tokenizer files again"):
        load_tokenizer(spm_directory)


def test_a_long_text_is_encoded_in_pieces_that_end_with_lines(tmp_path: Path, monkeypatch: Any) -> None:
    from endor_jax.text import tokenizer as module
    from tests.tiny_models import byte_tokenizer

    put(tmp_path, "tokenizer.json", byte_tokenizer())
    tokenizer = load_tokenizer(tmp_path)
    text = "one line\n" * 50 + "x" * 300 + "\nand the rest"
    whole = tokenizer.encode(text)
    monkeypatch.setattr(module, "PIECE", 100)
    pieces = module._pieces(text)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 100
    assert pieces[0] == "one line\n" * 11
    assert tokenizer.encode(text) == whole
