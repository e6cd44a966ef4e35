"""A contender in its process: opened once, a turn per request, errors with their place, an end always."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from endor_jax.bench import contender_process
from endor_jax.bench.contender_process import Contender, ContenderProcess, OpenModel, take_turn
from endor_jax.errors import EndorError, InvalidInputError, NotFoundError


@contextmanager
def counting(last: int, closed: Path) -> Iterator[OpenModel]:
    """Counts on from the prompt, up to `last`; one that is asked for 99 raises, and for 98 dies."""

    def generate(prompt: Sequence[int], tokens: int) -> Iterator[int]:
        if prompt[-1] == 98:
            os._exit(7)
        if prompt[-1] == 99:
            raise ValueError("no such prompt")
        return (prompt[-1] + 1 + i for i in range(min(tokens, last - prompt[-1])))

    yield OpenModel(generate, 123, "cpu")
    closed.write_text("closed")


@contextmanager
def missing() -> Iterator[OpenModel]:
    raise NotFoundError("model", got="nothing", expected="something", fix="make it")
    yield


def contender(closed: Path) -> Contender:
    return Contender("counting", counting, {"last": 20, "closed": closed})


def test_a_process_opens_takes_turns_says_what_fails_and_closes(tmp_path: Path):
    closed = tmp_path / "closed"
    with ContenderProcess(contender(closed)) as process:
        assert (process.streamed_bytes, process.platform) == (123, "cpu")
        turn = process.turn([3], 5, cold=True)
        assert turn.token_ids == (4, 5, 6, 7, 8)
        assert len(turn.token_seconds) == 3
        assert turn.peak_bytes > 1_000_000
        with pytest.raises(
            InvalidInputError, match="counting: got an end of text after 3 tokens, expected 5"
        ):
            process.turn([17], 5, cold=False)
        with pytest.raises(EndorError, match=r"counting, .*py:\d+: got ValueError: no such prompt"):
            process.turn([99], 5, cold=False)
        assert process.turn([3], 4, cold=False).token_ids == (4, 5, 6, 7)  # it goes on all the same
        assert not closed.exists()
    assert closed.exists()
    process.close()


def test_a_process_that_dies_is_an_error_and_not_a_hang(tmp_path: Path):
    process = ContenderProcess(contender(tmp_path / "closed"))
    with pytest.raises(EndorError, match="counting: got the end of its process, with code 7"):
        process.turn([98], 5, cold=False)
    process.close()


def test_what_opening_raises_is_raised_here():
    with pytest.raises(NotFoundError, match="model: got nothing, expected something; make it"):
        ContenderProcess(Contender("missing", missing, {}))


def test_dropping_counts_for_who_reads_on_meanwhile_only(monkeypatch: pytest.MonkeyPatch):
    dropped = []

    def drop(files: Sequence[Path]) -> None:
        dropped.append(files)
        time.sleep(0.3)

    monkeypatch.setattr(contender_process, "drop", drop)
    model = OpenModel(lambda prompt, tokens: iter(range(tokens)), 0, "cpu")
    for ahead in (False, True):
        one = Contender("one", missing, {}, reads_ahead=ahead)
        cold = take_turn(one, model, prompt=[1], tokens=4, cold=True)
        assert all((seconds > 0.25) == ahead for seconds in cold.token_seconds)
        assert len(cold.token_seconds) == 2
    assert len(dropped) == 6  # before every token but the first
    assert max(take_turn(one, model, prompt=[1], tokens=4, cold=False).token_seconds) < 0.25
