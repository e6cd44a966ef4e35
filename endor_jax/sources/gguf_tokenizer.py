"""The tokenizer in a GGUF file's metadata, as tokenizer.json and tokenizer_config.json.

A GGUF file has no tokenizer.json: it lists tokens, their types, merges or scores, and names the rules with
two strings (`tokenizer.ggml.model` and `.pre`). What those strings mean is defined by llama.cpp's code only;
`bpe` holds the rules we know, and every other string is refused, because a wrong rule gives a tokenizer that
works and is quietly worse.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from math import isfinite
from typing import Any

from tokenizers import Tokenizer

from endor_jax.errors import EndorError, InvalidInputError, UnsupportedError
from endor_jax.sources.bpe import SPLITTINGS, Vocabulary, add_template, byte_level, sentencepiece
from endor_jax.sources.brief import brief, brief_text
from endor_jax.sources.gguf_config import token_id

# llama.cpp, `llama_token_type`. UNUSED (5) are fillers: they have an id, and nothing becomes them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_NAMED_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def tokenizer_files(metadata: Mapping[str, Any], *, where: str) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json by name; nothing for a file without a vocabulary.

    Raises UnsupportedError for a tokenizer model or pre-tokenizer other than those in `bpe`, and
    InvalidInputError for lists that are missing or do not agree.
    """
    model = metadata.get("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab"):
        return {}
    if model == "gpt2":
        tokenizer, adds_start = _byte_level(metadata, where=where)
    elif model == "llama":
        tokenizer, adds_start = _sentencepiece(metadata, where=where), True
    else:
        raise _unsupported(where, got=f"tokenizer model {brief(model)}", expected="'gpt2' or 'llama'")
    config = _tokenizer_config(metadata, adds_start=adds_start, where=where)
    add_template(
        tokenizer,
        start=config["bos_token"] if config["add_bos_token"] else None,
        end=config["eos_token"] if config["add_eos_token"] else None,
    )
    return {
        "tokenizer.json": (tokenizer.to_str(pretty=True) + "\n").encode("utf-8"),
        "tokenizer_config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8"),
    }


def _byte_level(metadata: Mapping[str, Any], *, where: str) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether it adds a start token unless told otherwise."""
    rule = metadata.get("tokenizer.ggml.pre")
    if not isinstance(rule, str) or rule not in SPLITTINGS:
        # llama.cpp takes "default" for a missing rule and warns that quality suffers; we do not guess.
        raise _unsupported(
            where,
            got="no tokenizer.ggml.pre" if rule is None else f"pre-tokenizer {brief(rule)}",
            expected=f"one of {', '.join(SPLITTINGS)}",
        )
    merges = [tuple(merge.split(" ")) for merge in _list(metadata, "merges", str, where=where)]
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise _invalid(
            where, got=f"merge {brief(' '.join(wrong))}", expected="two tokens with a space between"
        )
    vocabulary = _vocabulary(metadata, where=where)
    try:
        tokenizer = byte_level(vocabulary, [(left, right) for left, right in merges], SPLITTINGS[rule])
    except Exception as error:
        # `tokenizers` raises bare Exception for everything its Rust side refuses.
        raise _invalid(
            where, got=f"merges that do not fit ({brief_text(error)})", expected="merges of listed tokens"
        ) from error
    return tokenizer, SPLITTINGS[rule].adds_start


def _sentencepiece(metadata: Mapping[str, Any], *, where: str) -> Tokenizer:
    vocabulary = _vocabulary(metadata, where=where)
    scores = _list(metadata, "scores", float, where=where)
    if len(scores) != len(vocabulary.tokens):
        raise _invalid(
            where, got=f"{len(scores)} scores", expected=f"{len(vocabulary.tokens)}, one per token"
        )
    return sentencepiece(
        vocabulary,
        scores,
        unknown=token_id(metadata, "unknown", where=where),
        space_prefix=_flag(metadata, "add_space_prefix", where=where, default=True),
    )


def _vocabulary(metadata: Mapping[str, Any], *, where: str) -> Vocabulary:
    tokens = _list(metadata, "tokens", str, where=where)
    types = [_NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in metadata:
        types = _list(metadata, "token_type", int, where=where)
    if len(types) != len(tokens):
        raise _invalid(where, got=f"{len(types)} token types", expected=f"{len(tokens)}, one per token")
    if len(set(tokens)) < len(tokens):
        repeated = [token for token, count in Counter(tokens).items() if count > 1]
        raise _invalid(where, got=f"token {brief(repeated[0])} twice", expected="every token once")

    def ids(*kinds: int) -> frozenset[int]:
        return frozenset(index for index, kind in enumerate(types) if kind in kinds)

    return Vocabulary(
        tokens, special=ids(_CONTROL, _UNKNOWN), literal=ids(_USER_DEFINED), merged=ids(_NORMAL)
    )


def _tokenizer_config(metadata: Mapping[str, Any], *, adds_start: bool, where: str) -> dict[str, Any]:
    """What transformers keeps beside tokenizer.json."""
    tokens = _list(metadata, "tokens", str, where=where)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, key in _NAMED_TOKENS.items():
        index = token_id(metadata, key, where=where)
        config[name] = None if index is None else tokens[index]
    config["add_bos_token"] = _flag(metadata, "add_bos_token", where=where, default=adds_start)
    config["add_eos_token"] = _flag(metadata, "add_eos_token", where=where, default=False)
    config["clean_up_tokenization_spaces"] = False
    if (template := metadata.get("tokenizer.chat_template")) is not None:
        if not isinstance(template, str):
            raise _invalid(where, got=f"chat template {brief(template)}", expected="a string")
        config["chat_template"] = template
    return config


def _list(metadata: Mapping[str, Any], key: str, kind: type, *, where: str) -> list[Any]:
    """`tokenizer.ggml.{key}`, whose items are all of one kind."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list):
        raise _invalid(where, got=f"no list tokenizer.ggml.{key}", expected="one in a file with a vocabulary")
    # A GGUF list has one type throughout, so the first item stands for all; any float may be NaN.
    if (value and type(value[0]) is not kind) or (kind is float and not all(map(isfinite, value))):
        raise _invalid(
            where,
            got=f"tokenizer.ggml.{key} {brief(value)}",
            expected=f"finite items of type {kind.__name__}",
        )
    return value


def _flag(metadata: Mapping[str, Any], key: str, *, where: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise _invalid(where, got=f"tokenizer.ggml.{key} {brief(value)}", expected="true or false")
    return value


def _invalid(where: str, *, got: str, expected: str) -> EndorError:
    return InvalidInputError(
        f"tokenizer of {where}", got=got, expected=expected, fix="convert it again with a current llama.cpp"
    )


def _unsupported(where: str, *, got: str, expected: str) -> EndorError:
    return UnsupportedError(
        f"tokenizer of {where}",
        got=got,
        expected=expected,
        fix="convert from the Hugging Face safetensors of this model, which have a tokenizer.json",
    )
