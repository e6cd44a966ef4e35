"""Sessions: the history of a conversation stays in the cache, and changes nothing but the time it takes."""

from __future__ import annotations

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import InvalidInputError, OptionError, StreamError
from endor_jax.generate.continuation import wishes_for
from endor_jax.generate.sampling import Sampler
from tests.cases import spread
from tests.tiny_models import END, LLAMA, OPT, write_tiny

pytestmark = pytest.mark.usefixtures("compiled_quickly")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module", params=[LLAMA, OPT], ids=["llama", "opt"])
def model(request, tmp_path_factory):
    """float32, with a chat template."""
    base = tmp_path_factory.mktemp("session")
    source = write_tiny(base / "source", request.param, tokenizer=True)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    endor.convert(source, base / "dst")
    with endor.load(base / "dst", context=290) as loaded:
        yield loaded


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def told(tokens) -> list[int]:
    return [token.id for token in tokens]


@pytest.mark.parametrize(("first", "more"), spread([1, 20, 128, 150], [1, 40, 100], every=3))
def test_going_on_gives_what_starting_again_gives(model, first, more):
    session = model.session()
    history = ids(first)
    history += told(session.generate(history, wishes_for(10, None, ())))
    history += ids(more, seed=1)
    going_on = told(session.generate(history, wishes_for(10, None, ())))
    assert going_on == told(model.generate(history, max_tokens=10))
    # All but the last token of the first answer, which has not passed through the model yet.
    assert session.statistics.cached_tokens == len(history) - more - 1
    assert session.statistics.prompt_tokens == len(history)


def test_what_differs_is_computed_again(model):
    session = model.session()
    told(session.generate(ids(60), wishes_for(5, None, ())))
    changed = [*ids(40), 7, *ids(30, seed=2)]
    assert changed[40] != ids(60)[40]
    assert told(session.generate(changed, wishes_for(5, None, ()))) == told(
        model.generate(changed, max_tokens=5)
    )
    assert session.statistics.cached_tokens == 40
    # A prompt that is all cached: its last token passes once more, for the logits.
    assert told(session.generate(changed, wishes_for(5, None, ()))) == told(
        model.generate(changed, max_tokens=5)
    )
    assert session.statistics.cached_tokens == 70


def test_near_the_end_of_the_context_there_is_no_room_for_padding(model):
    session = model.session()
    told(session.generate(ids(200), wishes_for(60, None, ())))
    history = [*session._held, *ids(25, seed=3)]
    assert told(session.generate(history, wishes_for(3, None, ()))) == told(
        model.generate(history, max_tokens=3)
    )
    assert session.statistics.cached_tokens >= 200


def test_an_answer_left_midway_is_history_as_far_as_it_was_taken(model):
    session = model.session()
    answer = session.generate(ids(30), wishes_for(20, None, ()))
    taken = [next(answer).id for _ in range(4)]
    answer.close()
    history = [*ids(30), *taken, 5, 6]
    assert told(session.generate(history, wishes_for(6, None, ()))) == told(
        model.generate(history, max_tokens=6)
    )


def test_one_generation_at_a_time(model):
    session = model.session()
    first = session.generate(ids(5), wishes_for(5, None, ()))
    next(first)
    second = session.generate(ids(6, seed=9), wishes_for(5, None, ()))
    with pytest.raises(StreamError, match="resumed after the next one was begun"):
        next(first)
    assert told(second) == told(model.generate(ids(6, seed=9), max_tokens=5))


def test_a_chat_has_its_messages_in_the_template(model):
    session = model.session()
    text = "".join(token.text for token in session.reply("Hello", max_tokens=8))
    assert session.messages == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": text},
    ]
    assert text == model.complete("<user>Hello\n<assistant>", max_tokens=8).text
    again = "".join(token.text for token in session.reply("And?", max_tokens=8))
    whole = f"<user>Hello\n<assistant>{text}\n<user>And?\n<assistant>"
    assert again == model.complete(whole, max_tokens=8).text
    assert len(session.messages) == 4
    assert session.statistics.cached_tokens >= len("<user>Hello\n<assistant>")


def test_a_chat_that_fills_the_context(model):
    session = model.session()
    # Without a limit an answer may take all that is left.
    tokens = list(session.reply("x" * 200, sampler=Sampler(temperature=2.0, seed=1)))
    asked = len("<user>" + 200 * "x" + "\n<assistant>")
    assert len(tokens) == 290 - asked or tokens[-1].id == END
    messages = list(session.messages)
    with pytest.raises(InvalidInputError, match="at most 290 in all"):
        session.reply("y" * 200, max_tokens=1)
    assert session.messages == messages


def test_a_reply_needs_a_template(tmp_path):
    endor.convert(write_tiny(tmp_path / "plain", tokenizer=True), tmp_path / "a")
    endor.convert(write_tiny(tmp_path / "bare"), tmp_path / "b")
    with endor.load(tmp_path / "a") as model, pytest.raises(InvalidInputError, match="without one"):
        model.session().reply("Hello")
    with (
        endor.load(tmp_path / "b") as model,
        pytest.raises(InvalidInputError, match="chat: got a checkpoint"),
    ):
        model.session().reply("Hello")


def sampled_with_plain_text(model):
    """A sampler, its tokens, their text, and where in it three ASCII characters stand for the first time."""
    for seed in range(50):
        sampler = Sampler(temperature=1.0, seed=seed)
        tokens = list(model.generate("abc", max_tokens=60, sampler=sampler))
        text = "".join(token.text for token in tokens)
        for at in range(5, len(text) - 3):
            if text[at : at + 3].isascii() and text.find(text[at : at + 3]) == at:
                return sampler, tokens, text, at
    raise AssertionError("no text with three ASCII characters in a row")


def test_stop_strings_straddle_tokens(model):
    """Every token is a byte here, so a stop of several characters is several tokens."""
    sampler, tokens, text, at = sampled_with_plain_text(model)
    stop = text[at : at + 3]
    cut = list(model.generate("abc", max_tokens=60, sampler=sampler, stop=["never ever", stop]))
    assert "".join(token.text for token in cut) == text[:at]
    assert len(cut) < len(tokens)
    assert [token.id for token in cut] == [token.id for token in tokens[: len(cut)]]
    completion = model.complete("abc", max_tokens=60, sampler=sampler, stop=[stop])
    assert (completion.text, completion.finish_reason) == (text[:at], "stop")


def test_why_a_completion_ended(model):
    assert model.complete("abc", max_tokens=3).finish_reason in ("length", "end")
    with pytest.raises(OptionError, match="empty string"):
        model.complete("abc", stop=[""])


def test_stop_strings_need_a_tokenizer(tmp_path):
    endor.convert(write_tiny(tmp_path / "bare"), tmp_path / "b")
    with (
        endor.load(tmp_path / "b") as model,
        pytest.raises(InvalidInputError, match="stop strings: got a che"),
    ):
        list(model.generate([1, 2], stop=["x"]))


def test_a_penalty_sees_prompt_and_generation(model):
    tokens = told(model.generate(ids(20), max_tokens=30, sampler=Sampler(repetition_penalty=1e9)))
    assert len({*ids(20)} & {*tokens}) == 0
    assert len(set(tokens)) == len(tokens)
