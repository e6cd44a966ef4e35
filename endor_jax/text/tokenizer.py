"""A tokenizer as Hugging Face directories hold it: text to ids, ids to text, and which ids end a text.

tokenizer.json is run by the `tokenizers` library. What it leaves open is in tokenizer_config.json (start and
end tokens, chat template) and in generation_config.json or config.json (ids at which generation stops).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.location import Location

PIECE = 1 << 20
"""Characters that are encoded at a time."""
_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class Tokenizer:
    """Invariant: ids are those of the model's embedding rows.

    `eos_ids`: each ends a text; there may be none. `special_tokens`: text by role ("bos_token", ...), for
    chat templates. `skipped_ids`: what decoding leaves out. `byte_ids`: tokens for single bytes, which are
    decoded in runs; none in byte-level vocabularies. `starts`, `ends`: what `encode` puts around a text, or
    None to leave it to tokenizer.json.
    """

    backend: tokenizers.Tokenizer = field(repr=False)
    bos_id: int | None
    eos_ids: frozenset[int]
    special_tokens: Mapping[str, str]
    chat_template: str | None = field(repr=False)
    skipped_ids: frozenset[int] = field(repr=False)
    byte_ids: frozenset[int] = field(repr=False)
    starts: tuple[int, ...] | None = None
    ends: tuple[int, ...] | None = None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Ids of `text`; with `add_special`, a start token (and an end token) iff transformers adds one.

        Rendered chats contain their start token: encode them with add_special=False. A text of more than
        PIECE characters is encoded in pieces that end with lines, because what the library holds for each
        token is a hundred times as long. Raises InvalidInputError for a string that is no text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, as Python makes of undecodable bytes
            raise InvalidInputError(
                "text", got=f"characters that are none ({error})", expected="Unicode", fix="convert it first"
            ) from error
        first, *rest = _pieces(text)
        if self.starts is None or self.ends is None:
            ids, ends = self.backend.encode(first, add_special_tokens=add_special).ids, ()
        else:
            ids, ends = self.backend.encode(first, add_special_tokens=False).ids, self.ends
            ids = [*self.starts, *ids] if add_special else ids
        for piece in rest:
            ids += self.backend.encode(piece, add_special_tokens=False).ids
        return [*ids, *ends] if add_special else ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`, special tokens left out unless `skip_special` is false.

        Bytes that are not UTF-8 become U+FFFD. The space that SentencePiece puts in front of a text is
        dropped, so decoding a continuation alone can lose one: use `StreamingDecoder` with the prompt.
        """
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)


FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""What a tokenizer is made of."""


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer whose files lie in `directory`; of those only tokenizer.json must be there.

    Raises NotFoundError without it and InvalidInputError for files that cannot be read.
    """
    directory = Path(directory)
    files = {}
    for name in FILES:
        if (directory / name).is_file():
            try:
                files[name] = (directory / name).read_bytes()
            except OSError as error:
                raise _unusable(directory / name, str(error)) from error
    return tokenizer_of(files, directory)


def tokenizer_of(files: Mapping[str, bytes], directory: Location) -> Tokenizer:
    """The tokenizer of some files, by name; `directory` is where they come from, for errors.

    `eos_ids` are eos_token_id of generation_config.json (or else of config.json) and the eos_token of
    tokenizer_config.json: chat models often name the end of the text in one and of the turn in the other.
    Raises as `load_tokenizer`.
    """
    backend = _backend(files, directory)
    config = _read_json(files, directory / "tokenizer_config.json")
    model = _read_json(files, directory / "config.json")
    generation = _read_json(files, directory / "generation_config.json")
    named = {name: text for name in _NAMED_TOKENS if (text := _content(config.get(name))) is not None}
    ids = {name: backend.token_to_id(text) for name, text in named.items()}
    bos_id = ids.get("bos_token")
    if bos_id is None:
        bos_id = next(
            iter(_ids(generation, "bos_token_id", directory) or _ids(model, "bos_token_id", directory)), None
        )
    eos_ids = _ids(generation, "eos_token_id", directory) or _ids(model, "eos_token_id", directory)
    if (declared := ids.get("eos_token")) is not None:
        eos_ids = (*eos_ids, declared)
    starts, ends = _around(config, ids)
    return Tokenizer(
        backend=backend,
        bos_id=bos_id,
        eos_ids=frozenset(eos_ids),
        special_tokens=MappingProxyType(named),
        chat_template=_chat_template(files, directory, config),
        skipped_ids=frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special),
        byte_ids=_byte_ids(backend),
        starts=starts,
        ends=ends,
    )


def _pieces(text: str) -> list[str]:
    """A text cut behind ends of lines into pieces of at most PIECE characters, if lines are not longer."""
    pieces, start = [], 0
    while len(text) - start > PIECE:
        end = text.rfind("\n", start, start + PIECE) + 1 or start + PIECE
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _backend(files: Mapping[str, bytes], directory: Location) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    if path.name not in files:
        raise NotFoundError(
            str(path),
            got="no such file",
            expected="the tokenizer in the form of the `tokenizers` library",
            fix="where the model has only vocab.json or tokenizer.model, write one with transformers: "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIRECTORY)",
        )
    try:
        backend = tokenizers.Tokenizer.from_buffer(files[path.name])
    except BaseException as error:
        # `tokenizers` raises bare Exception for what its Rust side refuses; what it trips over itself is a
        # PanicException, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unusable(path, str(error)) from error
    # Settings of whoever saved the file; here they would cut or lengthen prompts.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_json(files: Mapping[str, bytes], path: Location) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file."""
    if path.name not in files:
        return {}
    try:
        value = json.loads(files[path.name].decode())
    except (ValueError, RecursionError) as error:
        raise _unusable(path, str(error)) from error
    if not isinstance(value, dict):
        raise _unusable(path, f"a JSON {type(value).__name__}")
    return value


def _content(token: Any) -> str | None:
    """Tokens are written as strings, or as objects with their matching rules."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _ids(config: Mapping[str, Any], key: str, directory: Location) -> tuple[int, ...]:
    """One id, a list of ids, or nothing."""
    value = config.get(key)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(type(index) is int and index >= 0 for index in ids):
        raise _unusable(directory, f"{key} {value!r}")
    return ids


def _byte_ids(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """Ids of "<0x00>" to "<0xFF>", if the decoder makes bytes of them."""
    if backend.decoder is None or backend.decoder.decode(["<0x41>"]) != "A":
        return frozenset()
    ids = (backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(index for index in ids if index is not None)


def _around(
    config: Mapping[str, Any], ids: Mapping[str, int | None]
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """What transformers puts around a text: flags, where stated, overrule the template in tokenizer.json."""
    flags = {"bos_token": "add_bos_token", "eos_token": "add_eos_token"}
    if not any(flag in config for flag in flags.values()):
        return None, None
    starts, ends = (
        (index,) if config.get(flag) and (index := ids.get(name)) is not None else ()
        for name, flag in flags.items()
    )
    return starts, ends


def _chat_template(files: Mapping[str, bytes], directory: Location, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, which overrules tokenizer_config.json; of several, the one called "default"."""
    path = directory / "chat_template.jinja"
    if path.name in files:
        try:
            return files[path.name].decode()
        except ValueError as error:
            raise _unusable(path, str(error)) from error
    template = config.get("chat_template")
    if isinstance(template, Sequence) and not isinstance(template, str):
        if not all(isinstance(entry, dict) and {"name", "template"} <= entry.keys() for entry in template):
            raise _unusable(directory / "tokenizer_config.json", "a chat_template without names")
        template = {str(entry["name"]): entry["template"] for entry in template}.get("default")
    if template is not None and not isinstance(template, str):
        raise _unusable(
            directory / "tokenizer_config.json", f"a chat_template of type {type(template).__name__}"
        )
    return template


def _unusable(path: Location, got: str) -> InvalidInputError:
    return InvalidInputError(
        str(path), got=got, expected="a readable tokenizer file", fix="fetch the tokenizer files again"
    )
