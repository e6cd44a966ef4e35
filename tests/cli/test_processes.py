"""What only a process of its own shows: start-up, signals, pipes, colours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.cli.conftest import COMMAND

VERBS = ("convert", "reshard", "export", "info", "plan", "generate", "doctor", "demo")
HEAVY = ("jax", "numpy", "flax", "tensorstore", "tokenizers")


def test_help_lists_the_verbs_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom endor_jax.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in VERBS:
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb(start_command, verb):
    done = start_command(verb, "--help")
    assert done.code == 0
    assert "--json" in done.stdout


def test_no_colour_where_it_is_not_wanted(start_command, checkpoint):
    # FORCE_COLOR makes rich believe that it writes to a terminal.
    coloured = start_command("info", checkpoint, "--tensors", FORCE_COLOR="1")
    assert "\x1b[" in coloured.stdout
    plain = start_command("info", checkpoint, "--tensors", FORCE_COLOR="1", NO_COLOR="1")
    colours = [f"\x1b[{code}m" for code in (*range(30, 38), *range(90, 98))]
    assert not any(code in plain.stdout + plain.stderr for code in colours)
    piped = start_command("generate", checkpoint, "-p", "a", "--max-tokens", "2")
    assert "\x1b" not in piped.stdout + piped.stderr


def test_an_interrupt_exits_130(checkpoint):
    command = [*COMMAND, "generate", checkpoint, "-p", "a", "--max-tokens", "500", "--temp", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.read(1)  # text comes: it is generating
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == b""
    assert stderr.endswith(b"endor: interrupted\n")
    assert b"Traceback" not in stderr


def test_a_reader_that_stops_reading_is_no_error_of_ours(checkpoint):
    command = [*COMMAND, "generate", checkpoint, "-p", "a", "--max-tokens", "200", "--temp", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        stderr = process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in stderr


def test_stdin_that_is_no_text(start_command, checkpoint):
    done = start_command("generate", checkpoint, "-p", "-", stdin=b"\xff\xfe", PYTHONUTF8="1")
    assert done.code == 1
    assert done.stderr.startswith("endor: text: got characters that are none")
    assert done.stderr.count("\n") == 1


def test_all_of_stdout_is_json_even_where_libraries_talk(start_command, checkpoint):
    import json

    environment = {"JAX_LOG_COMPILES": "1", "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = start_command("generate", checkpoint, "-p", "a", "--max-tokens", "2", "--json", **environment)
    assert done.code == 0
    assert len(json.loads(done.stdout)["token_ids"]) == 2
    assert os.environ.get("JAX_LOG_COMPILES") is None
