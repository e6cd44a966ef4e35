"""The options of several processes, and whose stdout is printed on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from endor_jax.cli.joined import joined
from endor_jax.errors import OptionError

ALONE = {"processes": None, "process_index": None, "peer_timeout": None}


def test_without_options_a_process_is_alone():
    with joined(None, **ALONE) as peers:
        assert peers is None


@pytest.mark.parametrize(
    ("coordinator", "others", "got"),
    [
        ("a:1", {}, "--coordinator"),
        ("a:1", {"processes": 2}, "--coordinator, --processes"),
        (None, {"process_index": 0}, "--process-index"),
        (None, {"peer_timeout": 3.0}, "--peer-timeout"),
    ],
)
def test_some_of_the_options_are_not_enough(coordinator, others, got):
    expected = f"several processes: got {got}, expected --coordinator, --processes, --process-index; "
    with pytest.raises(OptionError, match=expected), joined(coordinator, **ALONE | others):
        pass


def test_numbers_that_cannot_be_leave_stdout_as_it_was():
    before = sys.stdout
    with (
        pytest.raises(OptionError, match="process index: got 7, expected 0 to 1"),
        joined("a:1", processes=2, process_index=7, peer_timeout=None),
    ):
        pass
    assert sys.stdout is before


@pytest.mark.parametrize(("index", "stdout"), [(0, "before\nresult ü\nafter\n"), (1, "before\nafter\n")])
def test_only_process_0_prints_and_libraries_do_not(index, stdout):
    code = (
        "import os\nfrom endor_jax.cli.joined import stdout_of_process_0\nprint('before')\n"
        f"with stdout_of_process_0({index}):\n    print('result ü')\n    os.write(1, b'[Gloo] connected')\n"
        "print('after')"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout == stdout
    assert done.stderr == "[Gloo] connected"
