"""`endor verify` and what `endor doctor` says of the disk: lines, JSON and exit codes."""

from __future__ import annotations

import json
import shutil

import pytest

from endor_jax.cli.console import one_line
from endor_jax.store.direct import READERS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def damaged(checkpoint, tmp_path):
    path = tmp_path / "damaged"
    shutil.copytree(checkpoint, path)
    data = bytearray((path / "parts/layers.3.0/c/0").read_bytes())
    data[200] ^= 1
    (path / "parts/layers.3.0/c/0").write_bytes(data)
    (path / "tokenizer.json").unlink()
    (path / "mine.txt").write_text("")
    return path


def test_a_whole_checkpoint_is_one_line(run_command, checkpoint):
    done = run_command("verify", checkpoint)
    assert done.code == 0
    assert done.stdout.startswith(f"{checkpoint}: ")
    assert "every byte as it was written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_every_problem_is_one_line(run_command, damaged):
    done = run_command("verify", damaged)
    assert (done.code, done.stdout) == (4, "")
    lines = done.stderr.splitlines()
    assert [line.split(": got")[0] for line in lines[:2]] == [
        "endor: file tokenizer.json",
        "endor: file parts/layers.3.0/c/0, record layers.3",
    ]
    assert lines[2:] == ["mine.txt belongs to no record and is not listed"]
    assert len(run_command("verify", damaged, "--quiet").stderr.splitlines()) == 2


def test_json(run_command, checkpoint, damaged):
    good = json.loads(run_command("verify", checkpoint, "--json").stdout)
    assert (good["ok"], good["problems"], good["notes"], good["records"]) == (True, [], [], 10)
    done = run_command("verify", damaged, "--json")
    assert done.code == 4
    bad = json.loads(done.stdout)
    assert set(bad) == set(good)
    assert set(bad["problems"][0]) == {"file", "record", "tensor", "got", "expected", "fix"}
    assert [problem["record"] for problem in bad["problems"]] == [None, "layers.3"]


@pytest.mark.parametrize(("kind", "code"), [("nothing", 1), ("empty", 1), ("unfinished", 4)])
def test_what_is_no_checkpoint(run_command, tmp_path, kind, code):
    if kind != "nothing":
        (tmp_path / kind).mkdir()
    if kind == "unfinished":
        (tmp_path / kind / "endor.journal").write_text("")
    done = run_command("verify", tmp_path / kind)
    assert done.code == code
    assert done.stderr.startswith(f"endor: checkpoint {tmp_path / kind}: got ")
    assert done.stderr.count("\n") == 1


def test_names_cannot_break_a_line():
    assert one_line("a\nb\x1b[31mé\u2028") == "a\\nb\\x1b[31mé\\u2028"


def test_doctor_measures_the_disk_of_a_checkpoint(run_command, checkpoint, damaged):
    disk = json.loads(run_command("doctor", checkpoint, "--json").stdout)["disk"]
    assert disk["path"] == str(checkpoint)
    assert disk["reader"] == "preadv"
    assert "too few for it to matter" in disk["why"]
    assert set(disk["rates"]) <= set(READERS)
    for rates in disk["rates"].values():
        assert set(rates["by_reads"]) == {"1", "2", "4"}
        for state in ("cold_bytes_per_second", "warm_bytes_per_second"):
            assert rates[state] == max(rate[state] for rate in rates["by_reads"].values()) > 0
    words = run_command("doctor", checkpoint).stdout
    assert "GB/s cold" in words
    shutil.rmtree(damaged / "parts/layers.0.0")
    assert run_command("doctor", damaged).code == 4


def test_doctor_measures_the_current_directory_and_leaves_nothing(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    disk = json.loads(run_command("doctor", "--json").stdout)["disk"]
    assert disk["path"] == str(tmp_path)
    assert "preadv" in disk["rates"]
    assert "what the page cache can hold: " in disk["why"]
    assert not [name for name in tmp_path.iterdir() if name.name != "cache"]


def test_doctor_where_nothing_can_be_written(run_command, monkeypatch):
    monkeypatch.chdir("/proc")
    disk = json.loads(run_command("doctor", "--json").stdout)["disk"]
    assert (disk["rates"], disk["reader"]) == ({}, None)
    assert disk["why"].startswith("not measured: ")
