"""`endor bench memory`: fresh processes keep to what they state, and the record tells on what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from endor_jax.bench import memory
from endor_jax.bench.memory import MemorySample
from endor_jax.cli.main import app
from endor_jax.errors import EndorError


def test_what_was_stated_beforehand_is_kept(tmp_path: Path):
    record = tmp_path / "records" / "record.json"  # in a directory that is not there yet
    command = [
        "bench",
        "memory",
        "--model",
        "llama-10m",
        "--work-dir",
        str(tmp_path),
        "--record",
        str(record),
    ]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert json.loads(record.read_text()) == values
    convert, calibrate, generate = values["samples"]
    assert [sample["what"] for sample in values["samples"]] == ["convert", "calibrate", "generate"]
    assert {"--calibration-target", "admm"} <= set(calibrate["arguments"])
    for sample in (convert, calibrate):
        print(f"stated {sample['stated_bytes'] >> 20} MiB, taken {sample['taken_bytes'] >> 20} MiB")
        assert sample["taken_bytes"] <= sample["stated_bytes"] <= 1.6 * sample["taken_bytes"]
        assert sample["kept"]
    assert generate["taken_bytes"] > 2**26
    assert {"commit", "versions", "machine", "model"} <= values.keys()
    assert values["versions"]["jax"]
    assert not list(tmp_path.glob("*.endor"))


@pytest.mark.parametrize(
    ("stated", "limit", "kept"),
    [(None, None, True), (10, 10, True), (9, None, False), (None, 9, False), (11, 9, False)],
)
def test_a_bound_may_be_reached_and_not_passed(stated, limit, kept):
    assert MemorySample("convert", (), stated, limit, 10, 1.0).kept is kept


def test_a_verb_that_fails_is_named_with_what_it_said(tmp_path: Path):
    with pytest.raises(EndorError, match=r"endor info .*: got exit code 1: endor: checkpoint .*expected 0"):
        memory._sample("look", ("info", str(tmp_path / "nowhere")), None)


def test_an_unknown_suite_is_usage(tmp_path: Path):
    done = CliRunner().invoke(app, ["bench", "speed"])
    assert done.exit_code == 2
    assert "No such command 'speed'" in done.stderr


@pytest.mark.parametrize("suite", ["memory", "expand", "linear", "decode"])
def test_a_record_that_cannot_be_written_is_refused_before_measuring(suite: str, tmp_path: Path):
    (tmp_path / "file").write_text("no directory")
    done = CliRunner().invoke(app, ["bench", suite, "--record", str(tmp_path / "file" / "record.json")])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr  # nothing was reported of measuring
    assert str(tmp_path / "file") in done.stderr
