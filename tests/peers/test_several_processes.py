"""Two processes of two devices each, over loopback: the same results, and one clear error when one is lost.

ENDOR_TEST_PEERS=all does everything to either process.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.peers.conftest import run_steps
from tests.peers.steps import ROWS, STEPS

TIMEOUT = 3.0
SLACK_SECONDS = 15.0
"""For a machine that is busy; each scenario would go on for a minute or for ever without the watch."""
WORDS = {
    "kill": "got the end of its connection",
    "stop": "got no sign of life for 3 seconds",
    "dawdle": "got no progress for 3 seconds",
    "raise": "got its own error, ValueError: a page that cannot be read",
}
CASES = [("kill", 0), ("stop", 1), ("raise", 1)]
MORE = [(act, process) for act in WORDS for process in (0, 1) if (act, process) not in CASES]


def cases() -> list[tuple[str, int]]:
    return CASES + (MORE if os.environ.get("ENDOR_TEST_PEERS") == "all" else [])


def test_two_processes_compute_the_same_and_leave_together():
    first, second = run_steps(None, None, timeout=60.0)
    for each in (first, second):
        assert each.code == 0, each.stderr
        assert each.words["threads"][1] == "['MainThread']"
    assert first.words["result"][1] == second.words["result"][1]
    matrix = np.random.default_rng(0).normal(size=(ROWS, ROWS)).astype(np.float32) / 4
    x = np.ones(ROWS, np.float32)
    for _ in range(STEPS):
        x = np.tanh(matrix @ x)
    np.testing.assert_allclose(
        np.frombuffer(bytes.fromhex(first.words["result"][1]), np.float32), x, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize(("act", "victim"), cases())
def test_when_one_is_lost_the_other_says_so_and_ends(act, victim):
    acts = [act if i == victim else None for i in range(2)]
    ended = run_steps(*acts, timeout=TIMEOUT, stopped=victim if act == "stop" else None)
    survivor = ended[1 - victim]
    assert survivor.code == 5, survivor.stderr
    said_at, error = survivor.words["error"]
    assert error.startswith(f"process {victim} of 2, counted from 0: {WORDS[act]}")
    assert said_at - ended[victim].words["act"][0] < TIMEOUT + SLACK_SECONDS
    assert survivor.at - said_at < SLACK_SECONDS
    assert survivor.words["threads"][1] == "['MainThread']"
    assert ended[victim].code == {"kill": -9, "stop": -9, "raise": 1, "dawdle": 5}[act]


def test_one_that_cannot_listen_ends_too():
    """Process 0 is in a call that does not return and knows nothing of its peers: the watch ends it."""
    first, second = run_steps("hold", "raise late", timeout=TIMEOUT)
    assert first.code == 5, first.stderr
    assert f"endor: process 1 of 2, counted from 0: {WORDS['raise']}" in first.stderr
    assert first.at - second.words["act"][0] < 2 * TIMEOUT + SLACK_SECONDS
    assert second.code == 1
