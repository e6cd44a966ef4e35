"""vocab.json and merges.txt give the tokenizer that transformers makes of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import tokenizers
from safetensors.numpy import save_file

import endor_jax as endor
from endor_jax.errors import EndorError, InvalidInputError, NotFoundError
from endor_jax.sources import open_source
from endor_jax.sources.copied_files import read_copied_files
from endor_jax.text import load_tokenizer, tokenizer_of
from tests.tiny_models import LLAMA, OPT, write_tiny

START = 2
NAMES = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}


def written(text: str) -> dict[str, Any]:
    """A token as the published files of OPT write it."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"content": text} | flags


CONFIG = {
    "errors": "replace",
    "add_prefix_space": False,
    "add_bos_token": True,
    "special_tokens_map_file": None,
    "name_or_path": "patrickvonplaten/opt-30b",
    "tokenizer_class": "GPT2Tokenizer",
} | {name: {"__type": "AddedToken"} | written(text) for name, text in NAMES.items()}


@cache
def trained() -> tuple[dict[str, int], list[str]]:
    """A vocabulary with OPT's first four tokens, and merges, learnt from the documentation of Python."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(list(topics.values())[:20], trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [" ".join(merge) for merge in model["merges"]]


def opt_files(directory: Path, **changes: Any) -> Path:
    """The tokenizer files of a published OPT; `changes` are contents by name with _ for the dot."""
    vocabulary, merges = trained()
    files: dict[str, Any] = {
        "config_json": OPT | {"vocab_size": 960, "bos_token_id": START, "eos_token_id": START},
        "vocab_json": vocabulary,
        "merges_txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config_json": CONFIG,
        "special_tokens_map_json": {name: written(text) for name, text in NAMES.items()},
    }
    directory.mkdir(exist_ok=True)
    for name, content in (files | changes).items():
        stem, _, suffix = name.rpartition("_")
        data = json.dumps(content, ensure_ascii=False) if isinstance(content, dict) else content
        if data is not None:
            (directory / f"{stem}.{suffix}").write_bytes(data.encode() if isinstance(data, str) else data)
    return directory


TEXTS = [
    "",
    " ",
    "Hello world, it's  12 o'clock.\n\n\tYes!",
    "naïve café — 東京 🙂\U0001f469\u200d\U0001f4bb",
    "\r\n a\u00a0b\u2028c\x85d\x00",
    "an end</s> in the middle, <pad> and <s> and <unk>",
    "   many   spaces   ",
    "I'LL we're 1234567 x²",
    *list(topics.values())[20:36],
]


@pytest.mark.reference
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tokenizer_config_json": CONFIG | {"add_bos_token": False}},
        {"tokenizer_config_json": CONFIG | {"add_prefix_space": True}},
        {"tokenizer_config_json": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}},
        {"added_tokens_json": {"<new>": 900, "<pet>": 901}},
        {
            "tokenizer_config_json": CONFIG
            | {"added_tokens_decoder": {"900": written("<new>"), "2": written("</s>") | {"special": True}}}
        },
    ],
    ids=["published", "no start", "space", "map only", "added", "decoder"],
)
def test_ids_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    directory = opt_files(tmp_path / "opt", **changes)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    ours = tokenizer_of(read_copied_files(directory), directory)
    for text in [*TEXTS, "a <new> <pet>s"]:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        ids = ours.encode(text, add_special=False)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.bos_id == theirs.bos_token_id


@pytest.mark.reference
def test_transformers_reads_what_was_made_as_it_reads_the_files(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = opt_files(tmp_path / "opt")
    (tmp_path / "made").mkdir()
    for name, data in read_copied_files(directory).items():
        (tmp_path / "made" / name).write_bytes(data)
    before = transformers.AutoTokenizer.from_pretrained(directory)
    after = transformers.AutoTokenizer.from_pretrained(tmp_path / "made")
    for text in TEXTS:
        assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.special_tokens_map == before.special_tokens_map


def test_every_text_begins_with_the_start_token(tmp_path: Path) -> None:
    """By the flag in tokenizer_config.json and by the template in tokenizer.json alike."""
    files = read_copied_files(opt_files(tmp_path / "opt"))
    tokenizer = tokenizer_of(files, tmp_path)
    assert tokenizer.encode("Hello")[0] == START
    assert tokenizer.encode("Hello") == tokenizer.backend.encode("Hello").ids
    assert tokenizer.encode("") == [START]
    assert tokenizer.decode(tokenizer.encode(TEXTS[3])) == TEXTS[3]
    assert tokenizer.eos_ids == {START}
    assert files == read_copied_files(tmp_path / "opt")


def test_names_that_only_the_older_file_has_are_kept(tmp_path: Path) -> None:
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}
    files = read_copied_files(opt_files(tmp_path / "opt", tokenizer_config_json=config))
    assert tokenizer_of(files, tmp_path).encode("x")[0] == START
    assert json.loads(files["tokenizer_config.json"])["pad_token"]["content"] == "<pad>"


def test_a_conversion_stores_the_tokenizer(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "source", OPT | {"vocab_size": 960})
    opt_files(source, config_json=None)
    endor.convert(source, tmp_path / "converted", prune="magnitude", sparsity=0.5)
    assert load_tokenizer(tmp_path / "converted").encode("Hello")[0] == START


def test_a_tokenizer_json_that_is_there_is_left_alone(tmp_path: Path) -> None:
    files = read_copied_files(opt_files(tmp_path / "opt", tokenizer_json="{}", vocab_json="damaged"))
    assert files["tokenizer.json"] == b"{}"
    assert json.loads(files["tokenizer_config.json"]) == CONFIG


@pytest.mark.parametrize("model_type", ["llama", "qwen2", None])
def test_where_the_rules_are_not_known_nothing_is_made(tmp_path: Path, model_type: str | None) -> None:
    """A conversion that needs no text goes on; what needs one says that tokenizer.json is missing."""
    directory = opt_files(tmp_path / "model", config_json=LLAMA | {"model_type": model_type})
    assert "tokenizer.json" not in read_copied_files(directory)
    (directory / "config.json").unlink()
    assert "tokenizer.json" not in read_copied_files(directory)


def test_sentencepiece_alone_is_an_error_only_where_a_text_is_needed(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "source", LLAMA)
    (source / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    endor.convert(source, tmp_path / "converted", prune="magnitude", sparsity=0.5)
    with pytest.raises(NotFoundError, match=r"tokenizer\.json.*tokenizer\.model.*save_pretrained"):
        load_tokenizer(tmp_path / "converted")
    with pytest.raises(EndorError, match=r"tokenizer\.json"):
        endor.convert(source, tmp_path / "wanda", prune="wanda", sparsity=0.5)


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "no merges": ({"merges_txt": None}, r"merges\.txt"),
    "no config": ({"tokenizer_config_json": None}, r"tokenizer_config\.json: got no such file beside vocab"),
    "vocabulary": ({"vocab_json": b"["}, r"vocab\.json: got unreadable JSON"),
    "ids": ({"vocab_json": {"a": "0"}}, r"vocab\.json: got values that are no ids"),
    "flags for ids": ({"vocab_json": {"a": True}}, "no ids"),
    "equal ids": ({"vocab_json": {"a": 0, "b": 0}}, "no ids, each once"),
    "negative": ({"vocab_json": {"a": -1}}, "no ids"),
    "giant": ({"vocab_json": {"a": 2**40}}, "no ids"),
    "none": ({"vocab_json": {}}, "no ids"),
    "merge of three": ({"merges_txt": "#version: 0.2\na b c\n"}, r"merges\.txt: got line 'a b c'"),
    "merge of one": ({"merges_txt": "a\n"}, "got line 'a'"),
    "merge of nothing": ({"merges_txt": "a \n"}, "got line 'a '"),
    "unknown merge": ({"merges_txt": "zq qz\n"}, r"merges\.txt: got merges that do not fit"),
    "merges in another code": ({"merges_txt": b"\xff\xfe"}, "other than UTF-8"),
    "class": (
        {"tokenizer_config_json": CONFIG | {"tokenizer_class": "LlamaTokenizer"}},
        r"tokenizer_class in .*got 'LlamaTokenizer'.*save_pretrained",
    ),
    "space": ({"tokenizer_config_json": CONFIG | {"add_prefix_space": 1}}, "add_prefix_space 1"),
    "token": ({"special_tokens_map_json": {"bos_token": 5}}, "bos_token of .*got 5"),
    "token flags": (
        {"special_tokens_map_json": {"bos_token": written("</s>") | {"lstrip": 1}}},
        "flags that are true or false",
    ),
    "no start token": (
        {"special_tokens_map_json": None, "tokenizer_config_json": {"add_bos_token": True}},
        "got add_bos_token and no bos_token",
    ),
    "added ids": ({"added_tokens_json": {"<new>": 7000}}, r"added token '<new>' with id 7000, expected 900"),
    "added equal ids": ({"added_tokens_json": {"a": 1, "b": 1}}, r"added_tokens\.json: got values"),
    "decoder": (
        {"tokenizer_config_json": CONFIG | {"added_tokens_decoder": ["x"]}},
        "added_tokens_decoder",
    ),
    "decoder token": (
        {"tokenizer_config_json": CONFIG | {"added_tokens_decoder": {"900": 7}}},
        "token 900 of .*got 7",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    changes, message = DAMAGE[kind]
    directory = opt_files(tmp_path / "opt", **changes)
    save_file({}, directory / "model.safetensors")
    with pytest.raises((InvalidInputError, NotFoundError), match=message) as raised:
        open_source(directory).files()
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 800
