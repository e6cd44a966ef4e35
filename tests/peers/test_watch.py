"""What watches tell each other, three of them in one process."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import pytest

from endor_jax.errors import PeerError
from endor_jax.peers.peers import Peers
from endor_jax.peers.standing import Failure
from tests.peers.conftest import eventually, watches


class NoEnding:
    """The end of a process, which these tests outlive."""

    code: int | None = None

    def end_with(self, code: int) -> None:
        self.code = code


def peers_of(all_watches) -> list[Peers]:
    made = []
    for i, watch in enumerate(all_watches):
        peers = object.__new__(Peers)
        peers.index, peers.processes, peers.timeout_seconds = i, len(all_watches), 60.0
        peers._watch, peers._ending, peers._closed = watch, NoEnding(), False
        made.append(peers)
    return made


def raised_by(call, *arguments) -> BaseException | None:
    try:
        call(*arguments)
    except BaseException as error:
        return error
    return None


def test_values_that_agree_and_values_that_do_not():
    same = {"checkpoint": "0f3a", "batch": "2"}
    with watches(3, timeout=60.0) as three, ThreadPoolExecutor(3) as pool:
        every = peers_of(three)
        assert list(pool.map(lambda peers: raised_by(peers.agree, same), every)) == [None] * 3
        values = [same, same, same | {"batch": "4"}]
        errors = list(pool.map(lambda peers, own: raised_by(peers.agree, own), every, values))
        assert {str(error) for error in errors} == {
            "process 2 of 3, counted from 0: got batch 4, expected 2 as in process 0; "
            "start all processes with the same checkpoint and the same options"
        }


def test_the_error_of_one_is_raised_by_all_with_its_name():
    with watches(3, timeout=60.0) as three:
        every = peers_of(three)
        every[2].fail(OSError("the disk is gone"))
        eventually(lambda: all(watch.failure is not None for watch in three))
        for peers in every[:2]:
            with pytest.raises(PeerError, match=r"process 2 of 3.*its own error, OSError: the disk is gone"):
                peers.progress()
            assert peers._ending.code == 5
        assert every[2]._ending.code == 1


def test_a_connection_that_ends_is_a_failure_for_all():
    with watches(3, timeout=60.0) as three:
        three[1].close()
        eventually(lambda: three[0].failure is not None and three[2].failure is not None)
        assert three[0].failure == three[2].failure
        assert three[2].failure.process == 1
        assert three[2].failure.got == "the end of its connection"


def test_who_waits_says_that_another_does_not_move():
    with watches(3, timeout=1.0) as three, three[1].waiting(), three[0].waiting():
        eventually(lambda: all(watch.failure is not None for watch in three))
        assert {watch.failure.process for watch in three} == {2}
        assert three[0].failure.got == "no progress for 1 seconds"


def test_who_moves_is_not_behind():
    with watches(2, timeout=1.0) as (first, second), first.waiting():
        for _ in range(30):
            second.moved()
            time.sleep(0.1)
        assert first.failure is None


def test_after_the_last_exchange_processes_may_leave():
    with watches(2, timeout=60.0) as two, ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda watch: watch.exchange("done", last=True), two)) == [["done"] * 2] * 2
        two[0].close()
        time.sleep(0.2)
        two[1].fail(Failure(1, got="a", expected="b", fix="c"))
        assert two[1].failure is None


def test_waiting_for_arrays_gives_them_back_and_their_errors():
    with watches(2, timeout=60.0) as two:
        peers = peers_of(two)[0]
        tree = {"a": jnp.arange(3), "b": (jnp.ones(2), "no array")}
        assert peers.wait(tree) is tree
        gone = jnp.arange(3)
        gone.delete()
        with pytest.raises(RuntimeError, match="deleted"):
            peers.wait(gone)


def test_a_wait_without_end_ends_when_another_process_fails(monkeypatch):
    with watches(2, timeout=60.0) as two:
        peers, other = peers_of(two)
        pending = jnp.ones(1)
        monkeypatch.setattr(type(pending), "is_ready", lambda self: False)
        threading.Timer(0.3, lambda: other.fail(ValueError("no"))).start()
        with pytest.raises(PeerError, match=r"process 1 of 2.*ValueError: no"):
            peers.wait(pending)


def test_one_that_is_done_while_others_go_on_is_an_error_for_all():
    with watches(3, timeout=60.0) as three, ThreadPoolExecutor(3) as pool:
        every = peers_of(three)
        calls = [lambda: every[0].agree({"a": "1"}), every[1].close, lambda: every[2].agree({"a": "1"})]
        errors = list(pool.map(raised_by, calls))
        assert len({str(error) for error in errors}) == 1
        assert "process 1 of 3, counted from 0: got the end of its work, while others go on" in str(errors[0])
