"""`endor generate` by two processes of two devices each: the tokens of one device, and an end when one dies.

ENDOR_TEST_PEERS=all kills either process, whether they share all layers or each has some.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import endor_jax as endor
from tests.cases import spread
from tests.peers.conftest import free_port
from tests.tiny_models import LLAMA, write_tiny

LARGER = {key: value for key, value in LLAMA.items() if key != "eos_token_id"} | {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
"""Large enough that what each part has of its own, its header and the norms, is little of it."""
SAYING_WHAT_IT_DID = """
import sys, threading
from endor_jax.cli.main import app
from endor_jax.store.reader import Checkpoint

read, ordinary = [], Checkpoint.read_part

def read_part(self, part, *, into):
    read.append(part.length_bytes)
    ordinary(self, part, into=into)

Checkpoint.read_part = read_part
try:
    app()
finally:
    sys.stderr.write(f"bytes {sum(read)}\\n")
    sys.stderr.write(f"threads {[thread.name for thread in threading.enumerate()]}\\n")
"""
TIMEOUT, SLACK_SECONDS, LIMIT_SECONDS = 3.0, 15.0, 150.0
PROMPT = "Once upon a time"
TENSOR, PIPELINE = ("--tensor-parallel", "4"), ("--pipeline-parallel", "2", "--tensor-parallel", "2")
KILLED = spread([0, 1], [TENSOR, PIPELINE], every=2, complete=os.environ.get("ENDOR_TEST_PEERS") == "all")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("several")
    source = write_tiny(directory / "source", LARGER, dtype="bfloat16", tokenizer=True)
    endor.convert(source, directory / "model.endor", prune="magnitude", sparsity=0.5, shards=4)
    return directory / "model.endor"


def start(path: Path, *options: str, index: int, port: int, timeout: float) -> subprocess.Popen[bytes]:
    run = ("--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process-index", str(index))
    words = ("generate", path, "-p", PROMPT, *run, "--peer-timeout", str(timeout))
    return subprocess.Popen(
        [sys.executable, "-c", SAYING_WHAT_IT_DID, *map(str, words), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
    )


def test_two_processes_say_what_one_device_says(shared: Path):
    options = (*TENSOR, "--max-tokens", "8", "--context", "64", "--device-memory", "1GiB")
    port = free_port()
    first, second = (
        start(shared, *options, *own, index=i, port=port, timeout=60.0)
        for i, own in enumerate([["--json"], []])
    )
    with first, second:
        stdout, stderr = first.communicate(timeout=LIMIT_SECONDS)
        nothing, words = second.communicate(timeout=LIMIT_SECONDS)
    assert first.returncode == 0, stderr
    assert second.returncode == 0, words
    assert nothing == b""
    result = json.loads(stdout)
    with endor.load(shared, context=64, device_memory="1GiB") as model:
        alone = model.complete(PROMPT, max_tokens=8)
    assert result["token_ids"] == alone.token_ids
    assert result["text"] == alone.text
    whole = sum(demand.read_bytes for demand in model.plan.demands)
    for said in (stderr, words):
        (read,) = re.findall(r"^bytes (\d+)$", said.decode(), re.MULTILINE)
        assert int(read) == pytest.approx(whole / 2, rel=0.1)


@pytest.mark.parametrize(("victim", "parallel"), KILLED)
def test_when_one_is_killed_the_other_says_so_and_ends(shared: Path, victim: int, parallel: tuple[str, ...]):
    options = (*parallel, "--max-tokens", "400")
    port = free_port()
    both = [start(shared, *options, index=i, port=port, timeout=TIMEOUT) for i in range(2)]
    with both[0], both[1]:
        assert both[0].stdout is not None
        killer = threading.Timer(LIMIT_SECONDS, both[0].kill)  # rather than to wait for text for ever
        killer.start()
        if not both[0].stdout.read(8):  # else it is generating
            raise AssertionError(both[0].communicate()[1].decode())
        killer.cancel()
        both[victim].kill()
        killed = time.monotonic()
        stderr = both[1 - victim].communicate(timeout=LIMIT_SECONDS)[1].decode()
        assert time.monotonic() - killed < TIMEOUT + SLACK_SECONDS
        both[victim].communicate()
    assert both[1 - victim].returncode == 5, stderr
    expected = (
        f"endor: process {victim} of 2, counted from 0: got the end of its connection, expected an open one"
    )
    assert expected in stderr
    assert stderr.splitlines()[-1] == "threads ['MainThread']"
