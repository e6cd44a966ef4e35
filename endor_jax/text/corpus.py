"""A text to calibrate with or to score: from a text file, from JSONL, or the one that is always there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from pydoc_data.topics import topics

from endor_jax.errors import InvalidInputError, NotFoundError

TEXT_KEYS = ("text", "content")
"""The members of a JSONL line that may hold its text, as datasets name them."""


def read_corpus(path: str | os.PathLike[str] | None = None) -> str:
    """The text of a UTF-8 file; of a `.jsonl`, that of all its lines, apart by an empty line each.

    None: the help texts of Python itself (`pydoc_data.topics`), English and code, some 465,000 characters
    that every machine has; they differ a little from one Python to the next. A JSONL line is a string or an
    object with a member "text" or "content". Raises NotFoundError, InvalidInputError for bytes that are no
    UTF-8, for lines that hold no text, and for a file with nothing but space in it.
    """
    if path is None:
        return "\n".join(topics.values())
    text = read_utf8(path, what="text", expected="a text or JSONL file")
    if Path(path).suffix == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        text = "\n\n".join(_text_of(path, number, line) for number, line in lines if line.strip())
    if not text.strip():
        raise InvalidInputError(f"text {path}", got="nothing", expected="a text", fix="choose another file")
    return text


def read_utf8(path: str | os.PathLike[str], *, what: str, expected: str) -> str:
    """The text of a file. what, expected: for the errors: what it is for, and which files will do.

    Raises NotFoundError, and InvalidInputError for a directory and for bytes that are no UTF-8.
    """
    where = f"{what} {path}"
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(where, got="no such file", expected=expected, fix="check the path") from error
    except IsADirectoryError as error:
        raise InvalidInputError(
            where, got="a directory", expected=expected, fix="name a file in it"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            where, got=f"bytes that are no text ({error})", expected="UTF-8", fix="convert it first"
        ) from error


def _text_of(path: str | os.PathLike[str], number: int, line: str) -> str:
    """The text in one line of a JSONL file."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"line {number} of {path}",
            got=f"no JSON ({error})",
            expected="a JSON object on each line",
            fix="mend the line, or give the file another name than .jsonl to read it as text",
        ) from error
    if isinstance(entry, str):
        return entry
    found = [entry[key] for key in TEXT_KEYS if key in entry] if isinstance(entry, dict) else []
    if not found or not isinstance(found[0], str):
        raise InvalidInputError(
            f"line {number} of {path}",
            got=f"an object with {', '.join(map(repr, entry)) or 'nothing'}"
            if isinstance(entry, dict)
            else f"{type(entry).__name__}",
            expected='a string, or an object with a string "text" or "content"',
            fix="rename the member that holds the text",
        )
    return found[0]
