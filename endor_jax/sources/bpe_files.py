"""vocab.json and merges.txt as a tokenizer.json: the tokenizers of repositories from before that file.

The two files list tokens and merges, and leave open how text is cut and what else happens. Which rules hold
is known for OPT: GPT-2's byte-level BPE, with a start token where tokenizer_config.json says so (for OPT it
is `</s>`). For other models nothing is made: a wrong rule gives a tokenizer that works and is quietly worse.

Source: transformers' GPT2Tokenizer, and how it reads the older files beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.sources.bpe import add_template
from endor_jax.sources.brief import brief, brief_text
from endor_jax.sources.byte_range import is_regular_file, read_file
from endor_jax.sources.json_object import parse_json_object, read_json_object

VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"
MODEL_TYPES = ("opt",)
_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAXIMUM_BYTES = 100_000_000  # the largest vocabularies in use have 10 MB


def bpe_tokenizer_files(directory: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """tokenizer.json, and tokenizer_config.json with all its tokens, made of the files in a directory.

    `files`: those read already, by name. Empty where there is no vocabulary, or the model is not one whose
    rules are known. Raises NotFoundError if only some of the files are there, InvalidInputError for files
    that cannot be read or contradict each other.
    """
    if not is_regular_file(directory / VOCABULARY_FILE) or not _rules_are_known(directory, files):
        return {}
    config = _config(directory, files)
    named = _named_tokens(directory, files, config)
    tokenizer = _byte_level(directory, config)
    _add_tokens(tokenizer, directory, config, named)
    add_template(
        tokenizer,
        start=_content(named, "bos_token") if config.get("add_bos_token") else None,
        end=_content(named, "eos_token") if config.get("add_eos_token") else None,
    )
    config |= {name: _written(token) for name, token in named.items()}
    return {
        "tokenizer.json": (tokenizer.to_str(pretty=True) + "\n").encode("utf-8"),
        "tokenizer_config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8"),
    }


def _rules_are_known(directory: Path, files: Mapping[str, bytes]) -> bool:
    config = files.get("config.json")
    if config is None:
        return False
    return parse_json_object(config, where=str(directory / "config.json")).get("model_type") in MODEL_TYPES


def _config(directory: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """tokenizer_config.json, which says whether there is a start token."""
    path = directory / "tokenizer_config.json"
    if path.name not in files:
        raise NotFoundError(
            str(path),
            got=f"no such file beside {VOCABULARY_FILE}",
            expected="the start and end tokens of the tokenizer",
            fix="fetch it from where the weights came from",
        )
    config = parse_json_object(files[path.name], where=str(path))
    if config.get("tokenizer_class", _CLASSES[0]) not in _CLASSES:
        raise InvalidInputError(
            f"tokenizer_class in {path}",
            got=brief(config["tokenizer_class"]),
            expected=" or ".join(_CLASSES),
            fix="write a tokenizer.json with transformers: "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIRECTORY)",
        )
    return config


def _named_tokens(
    directory: Path, files: Mapping[str, bytes], config: Mapping[str, Any]
) -> dict[str, AddedToken]:
    """The tokens with a role. special_tokens_map.json is older, and holds where it contradicts."""
    stated = {name: config[name] for name in _NAMED if config.get(name) is not None}
    path = directory / "special_tokens_map.json"
    if path.name in files and "added_tokens_decoder" not in config:
        older = parse_json_object(files[path.name], where=str(path))
        stated |= {name: older[name] for name in _NAMED if older.get(name) is not None}
    tokens = {name: _token(stated[name], f"{name} of {directory}") for name in _NAMED if name in stated}
    for token in tokens.values():
        token.special = True
    if config.get("add_bos_token") and "bos_token" not in tokens:
        raise _invalid(directory, got="add_bos_token and no bos_token", expected="the token to begin with")
    return tokens


def _byte_level(directory: Path, config: Mapping[str, Any]) -> Tokenizer:
    """GPT-2's tokenizer with this vocabulary and these merges, and nothing special."""
    path = directory / VOCABULARY_FILE
    vocabulary = parse_json_object(read_file(path, limit=_MAXIMUM_BYTES), where=str(path))
    ids = set(vocabulary.values()) if all(type(it) is int for it in vocabulary.values()) else set()
    if not ids or len(ids) < len(vocabulary) or not 0 <= min(ids) <= max(ids) < 2**31:
        raise _invalid(path, got="values that are no ids, each once", expected="a token id by token")
    merges = _merges(directory / MERGES_FILE)
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:
        # `tokenizers` raises bare Exception for everything its Rust side refuses.
        raise _invalid(
            directory / MERGES_FILE,
            got=f"merges that do not fit ({brief_text(error)})",
            expected=f"merges of tokens in {VOCABULARY_FILE}",
        ) from error
    space = config.get("add_prefix_space", False)
    if not isinstance(space, bool):
        raise _invalid(
            directory / "tokenizer_config.json",
            got=f"add_prefix_space {brief(space)}",
            expected="true or false",
        )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(path: Path) -> list[tuple[str, str]]:
    """The merges by rank: two tokens per line, with a space between."""
    try:
        text = read_file(path, limit=_MAXIMUM_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(path, got=f"other than UTF-8 ({brief_text(error)})", expected="text") from error
    merges: list[tuple[str, str]] = []
    for line in text.split("\n"):  # not splitlines, which knows more ends of lines than the file has
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        match line.split(" "):
            case [left, right] if left and right:
                merges.append((left, right))
            case _:
                raise _invalid(path, got=f"line {brief(line)}", expected="two tokens with a space between")
    return merges


def _add_tokens(
    tokenizer: Tokenizer, directory: Path, config: Mapping[str, Any], named: Mapping[str, AddedToken]
) -> None:
    """Tokens that are looked for before all else; those without an id get the next ones, in this order."""
    for index, token in sorted(_numbered_tokens(directory, config, named).items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != index:
            raise _invalid(
                directory,
                got=f"added token {brief(token.content)} with id {index}",
                expected=f"{tokenizer.token_to_id(token.content)}, by {VOCABULARY_FILE} and those before it",
            )
    tokenizer.add_special_tokens(list(named.values()))


def _numbered_tokens(
    directory: Path, config: Mapping[str, Any], named: Mapping[str, AddedToken]
) -> dict[int, AddedToken]:
    """Tokens besides the vocabulary, by id: of tokenizer_config.json, or else of added_tokens.json."""
    path = directory / "added_tokens.json"
    if "added_tokens_decoder" in config:
        path, listed = directory / "tokenizer_config.json", config["added_tokens_decoder"]
        if not isinstance(listed, dict) or not all(index.isdecimal() for index in listed):
            raise _invalid(path, got=f"added_tokens_decoder {brief(listed)}", expected="tokens by id")
        return {int(index): _token(value, f"token {index} of {path}") for index, value in listed.items()}
    if not is_regular_file(path):
        return {}
    ids = read_json_object(path)
    if not all(type(index) is int for index in ids.values()) or len(set(ids.values())) < len(ids):
        raise _invalid(path, got="values that are no ids, each once", expected="a token id by token")
    special = {token.content for token in named.values()}
    return {
        index: AddedToken(text, normalized=text not in special, special=text in special)
        for text, index in ids.items()
    }


def _token(value: Any, where: str) -> AddedToken:
    """A token as these files write it: a string, or an object with its matching rules."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    rules = ("single_word", "lstrip", "rstrip", "normalized", "special")
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise _invalid(where, got=brief(value), expected="a string, or an object with its content")
    flags = {name: value[name] for name in rules if name in value}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise _invalid(where, got=brief(value), expected="flags that are true or false")
    return AddedToken(value["content"], **flags)


def _content(named: Mapping[str, AddedToken], name: str) -> str | None:
    return named[name].content if name in named else None


def _written(token: AddedToken) -> dict[str, Any]:
    return {
        "__type": "AddedToken",
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def _invalid(where: Path | str, *, got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(str(where), got=got, expected=expected, fix="fetch the tokenizer files again")
