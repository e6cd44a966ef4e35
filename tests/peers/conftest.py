"""Several processes of a run: as processes, and as watches in one process."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from endor_jax.peers.line import Line
from endor_jax.peers.watch import Watch

ROOT = Path(__file__).parents[2]
TWO_DEVICES = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
LIMIT_SECONDS = 120.0
"""Starting takes seconds of a core, of which there may be few."""


@pytest.fixture(autouse=True)
def no_watches_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("endor-peers")] == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = socket.create_connection(listener.getsockname())
        return listener.accept()[0], there


@dataclass(frozen=True)
class Ended:
    """A process that ran `steps.py`: its exit code, when it ended (`time.time`), what it said and when."""

    code: int
    at: float
    words: dict[str, tuple[float, str]]
    stderr: str


def run_steps(*acts: str | None, timeout: float, stopped: int | None = None) -> list[Ended]:
    """As many processes as there are acts, until all have ended. stopped: one that only a kill ends, when all
    others have."""
    at = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.peers.steps",
                json.dumps(
                    {"coordinator": at, "processes": len(acts), "index": i, "timeout": timeout, "act": act}
                ),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | TWO_DEVICES,
        )
        for i, act in enumerate(acts)
    ]
    try:
        readers = [_Reader(process) for process in processes]
        for i, reader in enumerate(readers):
            if i != stopped:
                reader.join(LIMIT_SECONDS)
        if stopped is not None:
            assert processes[stopped].poll() is None
            processes[stopped].kill()
            readers[stopped].join(LIMIT_SECONDS)
        assert all(reader.ended is not None for reader in readers), "a process did not end"
        return [reader.ended for reader in readers]
    finally:
        for process in processes:
            process.kill()
            process.wait()


class _Reader(threading.Thread):
    def __init__(self, process: subprocess.Popen[str]):
        super().__init__(daemon=True)
        self._process = process
        self.ended: Ended | None = None
        self.start()

    def run(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr:
            stderr = self._process.stderr.read()
        code, now = self._process.wait(), time.time()
        said = re.findall(r"^(\d+\.\d+) (\w+) ?(.*)$", stderr, re.MULTILINE)
        self.ended = Ended(code, now, {word: (float(at), rest) for at, word, rest in said}, stderr)


@contextmanager
def watches(count: int, *, timeout: float) -> Iterator[list[Watch]]:
    """As many watches, in a star of connections, and closed together afterwards."""
    ends = [connected() for _ in range(count - 1)]
    stars = [{i: Line(ends[i - 1][0]) for i in range(1, count)}]
    stars += [{0: Line(ends[i - 1][1])} for i in range(1, count)]
    all_watches = [
        Watch(lines, index=i, processes=count, timeout_seconds=timeout) for i, lines in enumerate(stars)
    ]
    try:
        yield all_watches
    finally:
        closers = [threading.Thread(target=watch.close) for watch in all_watches]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()


def eventually(holds, seconds: float = 20.0) -> None:
    """Waits until it holds; the machine may be busy."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
