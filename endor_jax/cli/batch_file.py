"""Files of prompts, one JSON object per line: {"prompt": TEXT} or {"messages": [...]}, and "id" if wanted."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endor_jax.errors import EndorError, InvalidInputError, NotFoundError


@dataclass(frozen=True)
class Prompt:
    """One line: what comes back with its answer, and either a text or the messages of a chat."""

    id: Any
    text: str | None
    messages: list[dict[str, Any]] | None


def read_prompts(name: str) -> list[Prompt]:
    """The prompts of a file, or of stdin for "-"; empty lines are skipped.

    An id is by default the number of its line. Raises NotFoundError, InvalidInputError naming the line.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"batch file {name}",
            got="no such file",
            expected="one JSON object per line",
            fix="check the path",
        ) from error
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    prompts = [_prompt(name, number, line) for number, line in lines]
    if not prompts:
        raise InvalidInputError(
            f"batch file {name}", got="no lines", expected="one JSON object per line", fix="add prompts"
        )
    return prompts


def _prompt(name: str, number: int, line: bytes) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _wrong(name, number, f"no JSON ({error})") from error
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise _wrong(name, number, "neither or both of them")
    if unknown := value.keys() - {"id", "prompt", "messages"}:
        raise _wrong(name, number, f"a member {sorted(unknown)[0]!r}")
    text, messages = value.get("prompt"), value.get("messages")
    if "prompt" in value and not isinstance(text, str):
        raise _wrong(name, number, f"a prompt that is {type(text).__name__}")
    if "messages" in value and not (
        isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages)
    ):
        raise _wrong(name, number, "messages that are no list of objects")
    return Prompt(value.get("id", number), text, messages)


def _wrong(name: str, number: int, got: str) -> EndorError:
    return InvalidInputError(
        f"batch file {name}, line {number}",
        got=got,
        expected='an object with "prompt" (text) or "messages" (a list), and "id" if wanted',
        fix='write {"prompt": "Once upon a time"}',
    )
