"""A process that has everything imported and forks what can be killed: hundreds of conversions take minutes.

Run as a script it is the server: one JSON request per line on stdin, one JSON answer per line on stdout.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Server:
    """The forking process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def convert(
        self,
        source: Path,
        destination: Path,
        settings: dict[str, Any],
        *,
        kill_seconds: float | None = None,
        kill_event: int | None = None,
    ) -> dict[str, Any]:
        """Converts in a fork, which is killed (signal 9) after some seconds or at its n-th change to the file
        system. Returns {"status": exit status, negative if killed; "seconds"; "events"}."""
        return self._ask(["convert", str(source), str(destination), settings, kill_seconds, kill_event])

    def reshard(
        self, source: Path, destination: Path, *, shards: int, kill_event: int | None = None
    ) -> dict[str, Any]:
        """Cuts a checkpoint in a fork; otherwise like `convert`."""
        return self._ask(["reshard", str(source), str(destination), {"shards": shards}, None, kill_event])

    def _ask(self, request: list[Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=60)


def contents(path: Path) -> dict[str, bytes]:
    """Every file below a path, and every directory."""
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() else b"a directory"
        for file in path.rglob("*")
    }


def random_moment(draw: random.Random, whole: dict[str, Any]) -> dict[str, Any]:
    """A moment to kill at, of a conversion that took `whole`: by the clock, or by what it does."""
    if draw.random() < 0.5:
        return {"kill_seconds": draw.uniform(0, whole["seconds"])}
    return {"kill_event": draw.randrange(1, whole["events"] + 1)}


def _serve() -> None:
    import tensorstore  # noqa: F401

    from endor_jax.conversion.api import convert
    from endor_jax.conversion.reshard import reshard

    verbs = {"convert": convert, "reshard": reshard}
    for line in sys.stdin:
        verb, source, destination, settings, kill_seconds, kill_event = json.loads(line)
        read, write = os.pipe()
        start = time.perf_counter()
        child = os.fork()
        if child == 0:
            events = _count_events(kill_event)
            try:
                verbs[verb](source, destination, **settings)
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                sys.stderr.flush()
                os._exit(1)
            os.write(write, str(events[0]).encode())
            os._exit(0)
        os.close(write)
        if kill_seconds is not None:
            time.sleep(kill_seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        seconds = time.perf_counter() - start
        events = int(os.read(read, 20) or 0)
        os.close(read)
        answer = {"status": os.waitstatus_to_exitcode(status), "seconds": seconds, "events": events}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _count_events(kill_event: int | None) -> list[int]:
    """Counts what this process does to the file system, and kills it right before the n-th."""
    counted = [0]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "fsync")
        if changes or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            counted[0] += 1
            if counted[0] == kill_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    sync, write = os.fsync, os.write

    def fsync(handle: int) -> None:
        sys.audit("fsync")
        sync(handle)

    def torn(handle: int, data: bytes) -> int:
        half = len(data) // 2
        written = write(handle, data[:half])  # a line may be cut anywhere
        sys.audit("fsync")
        return written + write(handle, data[half:])

    os.fsync, os.write = fsync, torn
    return counted


if __name__ == "__main__":
    _serve()
