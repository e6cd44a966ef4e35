"""Damage of every kind to a whole checkpoint: `verify` reports it, and no text is made of damaged weights.

ENDOR_TEST_FLIPS and ENDOR_TEST_TRUNCATIONS say how many; the defaults are for every day.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import endor_jax as endor
from endor_jax.cli.main import app
from endor_jax.errors import EndorError
from endor_jax.store.verify import verify
from tests.store.small_checkpoints import convert_small, files_of

FLIPS = int(os.environ.get("ENDOR_TEST_FLIPS", "80"))
TRUNCATIONS = int(os.environ.get("ENDOR_TEST_TRUNCATIONS", "30"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_small(tmp_path_factory.mktemp("damage"))


def text_of(path: Path) -> str:
    """What `endor generate` prints, without its process."""
    with endor.load(path, context=16, device_memory="8MiB", host_memory="8MiB") as model:
        return model.complete("Hi", max_tokens=2).text


def outcome_of(path: Path) -> str | int:
    """The text, or the exit code of the error. Anything else that is raised is a failure."""
    try:
        return text_of(path)
    except EndorError as error:
        return error.exit_code


@pytest.fixture(scope="module")
def text(path: Path) -> str:
    return text_of(path)


@contextmanager
def changed(file: Path, data: bytes | None) -> Iterator[None]:
    """The file with other bytes (None: without the file), and as it was afterwards."""
    before = file.read_bytes()
    try:
        if data is None:
            file.unlink()
        else:
            file.write_bytes(data)
        yield
    finally:
        file.write_bytes(before)


def check_damage(path: Path, file: Path, data: bytes | None, text: str) -> str:
    """One change of one file: reported by `verify` with exit 4, by name; generating gives the very same text
    (nothing that was changed is used) or an error with exit 4. Returns which of the two it was."""
    name = str(file.relative_to(path))
    with changed(file, data):
        done = CliRunner().invoke(app, ["verify", str(path)])
        assert done.exit_code == 4, (name, done.exception, done.stderr)
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert lines
        assert all(line.startswith("endor: ") for line in lines)
        # A part is named by its directory, and a checkpoint without manifest by its own.
        expected = name.removesuffix("/c/0").removesuffix("/zarr.json")
        assert any(expected in line for line in lines), lines
        outcome = outcome_of(path)
        assert outcome in (text, 4), name
        return "refused" if outcome == 4 else "same text"


def test_the_checkpoint_is_whole(path: Path, text: str) -> None:
    assert len(files_of(path)) > 10
    report = verify(path)
    assert report.ok
    assert report.notes == ()
    assert report.bytes_checked == sum(file.stat().st_size for file in files_of(path))
    assert text_of(path) == text


def test_random_flips(path: Path, text: str) -> None:
    """Single bytes, over all files alike by size, and every file at least now and then."""
    random, files = np.random.default_rng(FLIPS), files_of(path)
    sizes = np.array([file.stat().st_size for file in files], np.float64)
    shares = sizes / sizes.sum() / 2 + 1 / len(files) / 2
    outcomes: Counter[str] = Counter()
    for number in range(FLIPS):
        file = files[random.choice(len(files), p=shares)]
        data = bytearray(file.read_bytes())
        at, bits = int(random.integers(len(data))), int(random.integers(1, 256))
        data[at] ^= bits
        try:
            outcomes[check_damage(path, file, bytes(data), text)] += 1
        except BaseException as error:
            error.add_note(f"flip {number}: byte {at} of {file.relative_to(path)} ^ {bits:#04x}")
            raise
    assert outcomes["refused"] > FLIPS // 2
    print(f"\n{FLIPS} flips, all reported; generate: {dict(outcomes)}")


def test_random_truncations(path: Path, text: str) -> None:
    random, files = np.random.default_rng(TRUNCATIONS), files_of(path)
    outcomes: Counter[str] = Counter()
    for _ in range(TRUNCATIONS):
        file = files[random.integers(len(files))]
        data = file.read_bytes()
        left = int(random.integers(len(data)))
        outcomes[check_damage(path, file, data[:left], text)] += 1
    assert outcomes == {"refused": TRUNCATIONS}
    print(f"\n{TRUNCATIONS} truncations, all reported; generate: {dict(outcomes)}")


def test_every_missing_file(path: Path, text: str) -> None:
    files = files_of(path)
    assert {check_damage(path, file, None, text) for file in files} == {"refused"}
    print(f"\n{len(files)} files, each missing once, all reported; generate: refused")


def test_every_missing_directory(path: Path, text: str) -> None:
    for directory in [path / "parts", *(path / "parts").iterdir()]:
        directory.rename(path.parent / "aside")
        try:
            assert CliRunner().invoke(app, ["verify", str(path)]).exit_code == 4
            with pytest.raises(EndorError) as error:
                text_of(path)
            assert error.value.exit_code == 4
        finally:
            (path.parent / "aside").rename(directory)


def test_longer_files(path: Path, text: str) -> None:
    for file in files_of(path):
        assert check_damage(path, file, file.read_bytes() + b"\n", text) == "refused"


def test_exchanged_files(path: Path) -> None:
    files = [file for file in files_of(path) if file.name != "endor.json"]
    random = np.random.default_rng(0)
    for _ in range(30):
        first, second = (files[i] for i in random.choice(len(files), 2, replace=False))
        one, other = first.read_bytes(), second.read_bytes()
        if one == other:
            continue
        with changed(first, other), changed(second, one):
            report = verify(path)
            names = {problem.file for problem in report.problems}
            assert {str(file.relative_to(path)) for file in (first, second)} <= names


def test_real_processes(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(path, damaged)
    file = damaged / "parts/layers.1.0/c/0"
    data = bytearray(file.read_bytes())
    data[700] ^= 4
    file.write_bytes(data)
    for arguments in (["verify", damaged], ["generate", damaged, "-p", "Hi", "--max-tokens", "2"]):
        command = [sys.executable, "-m", "endor_jax.cli.main", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("endor: ")
        assert "layers.1" in done.stderr
