"""SmolLM2's tokenizer, chat and streaming against transformers, from the same GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

from endor_jax.errors import MissingDependencyError
from endor_jax.text import StreamingDecoder, Tokenizer, load_tokenizer, render
from tests import real_models

pytestmark = pytest.mark.reference

transformers = pytest.importorskip("transformers")

TEXTS = {
    "English": "Hello world, it's 5 o'clock: don't you think we'll make it?",
    "digits": "On 31.12.1999 at 23:59, 1234567890 people paid $1,000.50 (3/4 = 75%)",
    "emoji": "family 👩‍👩‍👧, flag 🇫🇷, smile 😀!",
    "code": "def f(x: int) -> list[str]:\n    return [str(x**2)]  # comment\n\n\tif a != b:\n\t\tpass\n",
    "Chinese": "你好,世界!今天天气很好。",
    "spaces": "  two   three\n\n\nlines \t tab  \r\n end  ",
    "special": "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "empty": "",
}
# transformers 5.23 builds every "gpt2" tokenizer but a few named ones with GPT-2's splitting and leaves out
# the digits that SmolLM2 cuts first; that shows where blanks stand in front of a number.
BLANKS_BEFORE_DIGITS = ["a  1", "x = [  42,\n    7]", "tab\t\t3", "½ ² Ⅷ"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return real_models.smollm2_tokenizer(tmp_path_factory.mktemp("smollm2"))
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ours(directory: Path) -> Tokenizer:
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    path = real_models.smollm2_gguf()
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def published(directory: Path) -> Backend:
    """Our tokenizer.json with the pre-tokenizer that SmolLM2's own tokenizer.json states."""
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    return backend


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_ids_and_text(ours: Tokenizer, theirs: Any, published: Backend, text: str) -> None:
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ids == published.encode(text).ids
    assert ours.decode(ids, skip_special=False) == theirs.decode(ids) == text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    decoder = StreamingDecoder(ours)
    assert "".join([*(decoder.feed(index) for index in ids), decoder.finish()]) == ours.decode(ids)


@pytest.mark.parametrize("text", BLANKS_BEFORE_DIGITS)
def test_ids_where_transformers_leaves_the_digits_out(
    ours: Tokenizer, theirs: Any, published: Backend, text: str
) -> None:
    assert ours.encode(text) == published.encode(text).ids
    assert ours.encode(text) != theirs.encode(text), "transformers has caught up: move this text to TEXTS"


def test_our_files_in_transformers(directory: Path, ours: Tokenizer) -> None:
    loaded = transformers.AutoTokenizer.from_pretrained(directory)
    for text in (*TEXTS.values(), *BLANKS_BEFORE_DIGITS):
        assert loaded.encode(text) == ours.encode(text)
    assert loaded.eos_token_id in ours.eos_ids
    assert (loaded.bos_token_id, len(loaded)) == (ours.bos_id, 49152)


def test_stories_tokenizer_in_transformers() -> None:
    try:
        stories = real_models.stories15m()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    tokenizer, loaded = load_tokenizer(stories), transformers.AutoTokenizer.from_pretrained(stories)
    for text in (*TEXTS.values(), *BLANKS_BEFORE_DIGITS):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert tokenizer.encode(text)[0] == tokenizer.bos_id == 1


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_chat(ours: Tokenizer, theirs: Any, system: list[dict[str, str]], prompt: bool) -> None:
    messages = [
        *system,
        {"role": "user", "content": "  What is <b>2 + 2</b>?\n"},
        {"role": "assistant", "content": "4 😀"},
        {"role": "user", "content": "Sure?"},
    ]
    text = render(ours, messages, add_generation_prompt=prompt)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    assert ours.encode(text, add_special=False) == expected
