"""Stop strings: what comes out is the text before the earliest one, as early as it can be known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endor_jax.errors import OptionError
from endor_jax.text import StopStrings

LETTERS = st.text("ab😀", max_size=12)
STOPS = st.lists(st.text("ab😀", min_size=1, max_size=5), max_size=4)


def cut(text: str, stops: list[str]) -> str:
    """The plain twin: a whole text up to the earliest occurrence of any stop."""
    return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


def common_prefix(texts: set[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, letter in enumerate(first) if last[i : i + 1] != letter), len(first))]


def feed_all(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    stopper = StopStrings(stops)
    return [*map(stopper.feed, pieces), stopper.finish()], stopper.stopped


@given(stops=STOPS, pieces=st.lists(LETTERS, max_size=8))
def test_pieces_join_to_the_text_before_the_earliest_stop(stops: list[str], pieces: list[str]) -> None:
    given_out, stopped = feed_all(stops, pieces)
    text = "".join(pieces)
    assert "".join(given_out) == cut(text, stops)
    assert stopped == any(stop in text for stop in stops)


@given(stops=STOPS, pieces=st.lists(LETTERS, max_size=8))
def test_nothing_is_held_back_longer_than_needed(stops: list[str], pieces: list[str]) -> None:
    """After every piece, exactly that is out on which all continuations of the text agree."""
    stopper, out, text = StopStrings(stops), "", ""
    endings = ["", "\0", *(stop[i:] for stop in stops for i in range(len(stop)))]
    for piece in pieces:
        out += stopper.feed(piece)
        text += piece
        possible = {cut(text + ending, stops) for ending in endings}
        assert out == common_prefix(possible)
        assert stopper.stopped == (len(possible) == 1 and cut(text, stops) != text)


@pytest.mark.parametrize(
    ("stops", "pieces", "given_out", "stopped"),
    [
        pytest.param(["stop"], ["a sto", "p b"], ["a ", "", ""], True, id="straddles two pieces"),
        pytest.param(["stop"], ["s", "t", "o", "p"], ["", "", "", "", ""], True, id="one letter at a time"),
        pytest.param(["stop"], ["a sto", "rm"], ["a ", "storm", ""], False, id="begins, and is none"),
        pytest.param(["stop"], ["a sto"], ["a ", "sto"], False, id="unfinished at the end"),
        pytest.param(["aab"], ["aa", "ab", "c"], ["", "a", "", ""], True, id="overlaps its own beginning"),
        pytest.param(["x", "lo"], ["hello x"], ["hel", ""], True, id="the earliest inside one piece"),
        pytest.param(["bc", "abcd"], ["abc", "d"], ["", "", ""], True, id="an earlier one completes later"),
        pytest.param(["bc", "abcd"], ["abc", "e"], ["", "a", ""], True, id="an earlier one does not"),
        pytest.param(["bc", "abcd"], ["abc"], ["", "a"], True, id="the end decides"),
        pytest.param(["ab", "abc"], ["xab"], ["x", ""], True, id="the longer need not be waited for"),
        pytest.param(["\n\n"], ["a\n", "b\n\n", "c"], ["a", "\nb", "", ""], True, id="newlines"),
        pytest.param(["🎉🎈"], ["é🎉", "🎉🎈"], ["é", "🎉", ""], True, id="beyond the first plane"),
        pytest.param(["é"], ["e\u0301"], ["e\u0301", ""], False, id="no normalisation"),
        pytest.param([], ["a", "b"], ["a", "b", ""], False, id="no stops"),
        pytest.param(["a"], [], [""], False, id="no pieces"),
    ],
)
def test_cases(stops: list[str], pieces: list[str], given_out: list[str], stopped: bool) -> None:
    assert feed_all(stops, pieces) == (given_out, stopped)


@settings(max_examples=20)
@given(piece=LETTERS)
def test_nothing_comes_out_after_a_stop(piece: str) -> None:
    stopper = StopStrings(["!"])
    assert stopper.feed("a!") == "a"
    assert stopper.stopped
    assert stopper.feed(piece) == stopper.finish() == ""
    assert stopper.stopped


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(OptionError, match="stop strings: got an empty string, expected at least one char"):
        StopStrings(["a", ""])


def test_a_plain_string_is_not_taken_for_its_letters() -> None:
    with pytest.raises(OptionError, match="got the string 'stop', expected a sequence of strings"):
        StopStrings("stop")
