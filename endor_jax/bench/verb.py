"""One verb of the command line in a fresh process, so that its memory is not counted for the next one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from endor_jax.errors import EndorError


def run_verb(arguments: Sequence[str]) -> tuple[dict[str, Any], float]:
    """What `endor` with these arguments says as JSON, and the seconds of the process, imports included.

    Raises EndorError if it fails.
    """
    command = [sys.executable, "-m", "endor_jax.cli.main", *arguments, "--json", "--quiet"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise EndorError(
            f"endor {' '.join(arguments)}",
            got=f"exit code {done.returncode}: {_said(done.stderr)}",
            expected="0",
            fix="run it by itself",
        )
    return json.loads(done.stdout), seconds


def _said(stderr: str) -> str:
    """The line with which a verb failed; what follows it is detail."""
    lines = stderr.splitlines() or ["nothing said"]
    return next((line for line in lines if line.startswith("endor: ")), lines[-1])
