"""Killed at any moment and run again, a conversion gives the bytes of an uninterrupted one.

ENDOR_TEST_KILLS says how many random moments are tried (every 20th with the command line itself).
"""

from __future__ import annotations

import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import endor_jax as endor
from endor_jax.errors import NotFoundError
from endor_jax.store.journal import read_lines
from tests.conversion.interrupting import Server, contents, random_moment
from tests.tiny_models import LLAMA, write_tiny

KILLS = int(os.environ.get("ENDOR_TEST_KILLS", "6"))
SETTINGS = {"prune": "magnitude", "sparsity": 0.5, "dtype": "bfloat16"}
COMMAND = [
    sys.executable,
    "-m",
    "endor_jax.cli.main",
    "convert",
    "--prune",
    "magnitude",
    "--dtype",
    "bfloat16",
]
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
MODEL = LLAMA | {"num_hidden_layers": 6, "vocab_size": 1500, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


def state(path: Path) -> str:
    """How far a killed conversion came."""
    if not path.exists():
        return "before anything was written"
    if (path / "endor.json").exists():
        return "between manifest and journal's end" if (path / "endor.journal").exists() else "finished"
    lines, whole = read_lines((path / "endor.journal").read_bytes()) if any(path.iterdir()) else ([], 0)
    torn = " (torn line)" if lines and whole < (path / "endor.journal").stat().st_size else ""
    return f"{len(lines) - 1:2} parts finished{torn}" if lines else "before the journal began"


def assert_no_checkpoint_or_a_whole_one(path: Path, expected: dict[str, bytes]) -> None:
    try:
        with endor.open(path):
            pass
    except NotFoundError:
        assert not (path / "endor.json").exists()
    else:
        found = contents(path)
        found.pop("endor.journal", None)
        assert found == expected


def killed_command(source: Path, destination: Path, seconds: float) -> bool:
    """Whether the command line was still at work when it was killed."""
    with subprocess.Popen([*COMMAND, source, destination], **QUIET) as process:
        time.sleep(seconds)
        process.kill()
    return process.returncode == -signal.SIGKILL


def test_every_moment_can_be_gone_on_from(tmp_path: Path, server: Server) -> None:
    source, destination = write_tiny(tmp_path / "source", MODEL, tokenizer=True), tmp_path / "dst"
    start = time.perf_counter()
    subprocess.run([*COMMAND, source, tmp_path / "whole"], check=True, **QUIET)
    command_seconds = time.perf_counter() - start
    expected = contents(tmp_path / "whole")
    whole = server.convert(source, tmp_path / "forked", SETTINGS)
    assert whole["status"] == 0
    assert contents(tmp_path / "forked") == expected
    draw = random.Random(KILLS)
    states: collections.Counter[str] = collections.Counter()
    again = late = kills = commands = 0
    while kills < KILLS:
        if by_command := kills % 20 == 5:
            struck = killed_command(source, destination, draw.uniform(0.3, 1) * command_seconds)
        else:
            moment = random_moment(draw, whole)
            struck = server.convert(source, destination, SETTINGS, **moment)["status"] != 0
        if not struck:
            late += 1  # it was quicker than its killer
        else:
            kills += 1
            commands += by_command
            states[state(destination)] += 1
            assert_no_checkpoint_or_a_whole_one(destination, expected)
            while draw.random() < 0.4 and state(destination) != "finished":  # the resumed run is struck too
                server.convert(source, destination, SETTINGS, **random_moment(draw, whole))
                again += 1
            if state(destination) != "finished":
                if by_command:
                    subprocess.run([*COMMAND, source, destination], check=True, **QUIET)
                else:
                    assert server.convert(source, destination, SETTINGS)["status"] == 0
        assert contents(destination) == expected, f"kill {kills}: other bytes"
        shutil.rmtree(destination)
    print(
        f"\n{kills} kills ({commands} of the command line), {again} more of resumed runs, {late} came late;"
    )
    print(f"an uninterrupted run changes the file system {whole['events']} times; all bytes were the same")
    for where, count in sorted(states.items()):
        print(f"{count:4} {where}")


def test_every_change_to_the_file_system_can_be_the_last(tmp_path: Path, server: Server) -> None:
    source = write_tiny(tmp_path / "source", LLAMA | {"num_hidden_layers": 1})
    whole = server.convert(source, tmp_path / "whole", {})
    expected = contents(tmp_path / "whole")
    for event in range(1, whole["events"] + 1, 1 if KILLS >= 100 else 7):
        destination = tmp_path / f"dst{event}"
        assert server.convert(source, destination, {}, kill_event=event)["status"] == -9
        assert_no_checkpoint_or_a_whole_one(destination, expected)
        if state(destination) != "finished":  # it was struck in its very last steps
            assert server.convert(source, destination, {})["status"] == 0
        assert contents(destination) == expected, f"killed before change {event}"


def test_a_checkpoint_that_is_cut_again_can_be_gone_on_with(tmp_path: Path, server: Server) -> None:
    endor.convert(write_tiny(tmp_path / "source", LLAMA | {"num_hidden_layers": 1}), tmp_path / "one")
    before = contents(tmp_path / "one")
    whole = server.reshard(tmp_path / "one", tmp_path / "whole", shards=2)
    assert whole["status"] == 0
    expected = contents(tmp_path / "whole")
    for event in range(1, whole["events"] + 1, 1 if KILLS >= 100 else 12):
        destination = tmp_path / f"dst{event}"
        assert server.reshard(tmp_path / "one", destination, shards=2, kill_event=event)["status"] == -9
        assert_no_checkpoint_or_a_whole_one(destination, expected)
        if state(destination) != "finished":
            assert server.reshard(tmp_path / "one", destination, shards=2)["status"] == 0
        assert contents(destination) == expected, f"killed before change {event}"
    assert contents(tmp_path / "one") == before
