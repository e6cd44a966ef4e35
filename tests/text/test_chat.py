"""Chat templates: where they are found, what they may use, what they may not, and how they refuse."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from endor_jax.errors import InvalidInputError
from endor_jax.text import load_tokenizer, render

HELLO = [{"role": "user", "content": "Hello"}]


def with_template(directory: Path, template: Any, messages: Any = HELLO, **options: Any) -> str:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return render(load_tokenizer(directory), messages, **options)


def test_messages_tokens_and_prompt(spm_directory: Path) -> None:
    template = (
        "{{ bos_token }}\n{% for m in messages %}\n  {% if loop.index > 5 %}{% break %}{% endif %}\n"
        "[{{ m['role'] }}] {{ m.content | trim }}{{ eos_token }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert with_template(spm_directory, template) == "<s>\n[user] Hello</s>\n[assistant]"
    assert with_template(spm_directory, template, add_generation_prompt=False) == "<s>\n[user] Hello</s>\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "Hello"}]'),
        ("{{ {'a': '<é>'} | tojson(indent=1) }}", '{\n "a": "<é>"\n}'),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hello!"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{{ tools is none }} {{ documents is none }} {{ undefined_name is defined }}", "True True False"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
        ([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}], "yes"),
    ],
)
def test_what_templates_may_use(spm_directory: Path, template: Any, text: str) -> None:
    assert with_template(spm_directory, template) == text


def test_tools_are_passed(spm_directory: Path) -> None:
    assert with_template(spm_directory, "{{ tools[0].name }}", tools=[{"name": "search"}]) == "search"


def test_file_overrules_config(spm_directory: Path) -> None:
    (spm_directory / "chat_template.jinja").write_text("file")
    assert with_template(spm_directory, "config") == "file"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[0].content.missing.attribute }}", "UndefinedError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
    ],
)
def test_templates_that_fail(spm_directory: Path, template: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"chat template.*{message}"):
        with_template(spm_directory, template)


@pytest.mark.parametrize("template", [None, [{"name": "tool_use", "template": "x"}]])
def test_tokenizers_without_a_template(spm_directory: Path, template: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"without one.*--ignore-chat-template"):
        with_template(spm_directory, template)


def test_messages_that_are_not_json(spm_directory: Path) -> None:
    with pytest.raises(InvalidInputError, match="not JSON serializable"):
        with_template(spm_directory, "x", [{"role": "user", "content": b"bytes"}])
