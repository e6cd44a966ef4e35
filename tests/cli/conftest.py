"""A tiny model as source and as checkpoint, and the command line in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import endor_jax as endor
from endor_jax.cli.main import app
from endor_jax.store import disk_rates
from endor_jax.streaming import measure
from tests.tiny_models import LLAMA, write_tiny

COMMAND = [sys.executable, "-m", "endor_jax.cli.main"]
NEVER_ENDING = {key: value for key, value in LLAMA.items() if key != "eos_token_id"}


@dataclass(frozen=True)
class Done:
    """What a command left: exit code and both outputs."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command measures in this process is measured in no time."""
    monkeypatch.setattr(disk_rates, "MEASURED_SECONDS", 0.002)
    monkeypatch.setattr(measure, "SECONDS", 0.002)


@pytest.fixture(scope="session")
def run_command():
    """Runs a command line in this process."""

    def run(*arguments: str | Path, stdin: str | None = None) -> Done:
        result = CliRunner().invoke(app, list(map(str, arguments)), input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def start_command():
    """Runs a command line in a process of its own."""

    def run(*arguments: str | Path, stdin: bytes | None = None, **environment: str) -> Done:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            env=os.environ | environment,
            timeout=120,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = NEVER_ENDING | {"num_hidden_layers": 8}
    return write_tiny(tmp_path_factory.mktemp("cli") / "source", config, tokenizer=True)


@pytest.fixture(scope="session")
def checkpoint(source: Path) -> Path:
    path = source.parent / "model.endor"
    endor.convert(source, path, dtype="bfloat16", prune="magnitude", sparsity=0.5)
    return path
