"""Chat templates: messages to the one string a chat model was trained on.

A template is a Jinja program that came with a checkpoint, so it is untrusted: it runs in a sandbox that can
neither change objects nor reach Python's internals, over plain JSON values.
Source: transformers' utils/chat_template_utils.py, whose settings, functions and `generation` tag these are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from endor_jax.errors import InvalidInputError
from endor_jax.text.tokenizer import Tokenizer


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The text of a conversation, ready for `tokenizer.encode(text, add_special=False)`.

    `messages` are JSON values like {"role": "user", "content": "Hello"}; with `add_generation_prompt` the
    text ends where the assistant's answer begins. Raises InvalidInputError if the tokenizer has no template,
    the template has a mistake, or it refuses the messages (many insist on alternating roles).
    """
    if tokenizer.chat_template is None:
        raise InvalidInputError(
            "chat template",
            got="a tokenizer without one",
            expected="chat_template in tokenizer_config.json, or chat_template.jinja",
            fix="use plain text (--ignore-chat-template), or copy the template from the model's page",
        )
    try:
        values = json.loads(
            json.dumps({"messages": list(messages), "tools": None if tools is None else list(tools)})
        )
        return _compile(tokenizer.chat_template).render(
            **values, documents=None, add_generation_prompt=add_generation_prompt, **tokenizer.special_tokens
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        # A template that meets values it did not expect raises TypeError from inside Jinja.
        raise InvalidInputError(
            "chat template",
            got=f"{type(error).__name__}: {error}",
            expected="messages that the model's template accepts",
            fix="give `role` and `content`, start with a user message and let roles alternate",
        ) from error


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


class _GenerationTag(Extension):
    """{% generation %}...{% endgeneration %} marks the assistant's words for training; here it is text."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own declaration of it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter would escape for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
