"""When a process is silent, and when it is behind: pure functions, on any clock."""

from __future__ import annotations

from dataclasses import replace

from endor_jax.errors import PeerError
from endor_jax.peers.standing import Failure, Standing, apart, behind, said, silent


def at(seconds: float, *, waiting: bool = False, heard: float = 0.0) -> Standing:
    return Standing(heard, seconds, 7, waiting)


def test_silence_counts_from_the_last_word():
    quiet = {1: at(0.0, heard=9.0), 2: at(0.0, heard=5.0)}
    assert silent(quiet, now=8.0, timeout_seconds=3.0) is None
    failure = silent(quiet, now=8.1, timeout_seconds=3.0)
    assert failure is not None
    assert failure.process == 2


def test_who_waits_for_a_process_that_does_not_move_calls_it_behind():
    own = at(10.0, waiting=True)
    idle = {1: at(4.0), 2: at(12.0)}
    assert behind(idle, own, now=12.9, timeout_seconds=3.0) is None  # waited for too briefly
    failure = behind(idle, own, now=13.1, timeout_seconds=3.0)
    assert failure is not None
    assert failure.process == 1
    assert failure.got == "no progress for 3 seconds"


def test_nobody_is_behind_who_waits_too_or_moves():
    own = at(0.0, waiting=True)
    others = {1: at(0.0, waiting=True), 2: at(97.5)}
    assert behind(others, own, now=100.0, timeout_seconds=3.0) is None
    assert behind({1: at(0.0)}, at(0.0), now=100.0, timeout_seconds=3.0) is None  # computes itself


def test_a_process_moves_when_anything_of_it_changes():
    before = Standing(0.0, 0.0)
    assert said(before, 0, False, now=5.0).moved_seconds == 0.0
    assert said(before, 1, False, now=5.0).moved_seconds == 5.0
    assert said(before, 0, True, now=5.0).moved_seconds == 5.0


def test_every_process_makes_the_same_error_of_a_failure():
    error = Failure(1, got="silence", expected="a word", fix="wake it").error(2)
    assert isinstance(error, PeerError)
    assert error.exit_code == 5
    assert str(error) == "process 1 of 2, counted from 0: got silence, expected a word; wake it"


def test_processes_that_wait_for_different_things_are_apart():
    devices, call = at(0.0, waiting=True), replace(at(0.0, waiting=True), talking=True)
    failure = apart({0: devices, 1: call, 2: call}, now=3.1, timeout_seconds=3.0)
    assert failure is not None
    assert failure.process == 1
    assert failure.got.startswith("a call, for 3 seconds")
    for together in ({0: devices, 1: devices}, {0: call, 1: call}, {0: at(0.0), 1: call}):
        assert apart(together, now=3.1, timeout_seconds=3.0) is None
    assert apart({0: devices, 1: call}, now=2.9, timeout_seconds=3.0) is None
