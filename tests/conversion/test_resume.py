"""Going on with an interrupted conversion: what is kept, what is written again, what is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import endor_jax as endor
from endor_jax.conversion import pipeline
from endor_jax.conversion.pipeline import run_conversion, survey_conversion
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import DestinationBusyError, DestinationExistsError, InvalidInputError, ResumeError
from endor_jax.store.journal import read_lines
from tests.conversion.interrupting import contents
from tests.tiny_models import LLAMA, write_tiny

MODEL = LLAMA | {"vocab_size": 1500, "num_hidden_layers": 3}
PRUNED = {"prune": "magnitude", "sparsity": 0.5, "dtype": "bfloat16"}
COMMAND = [sys.executable, "-m", "endor_jax.cli.main", "convert"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "source", MODEL, tokenizer=True)


def interrupt_at(source: Path, destination: Path, record: str = "layers.1", **settings) -> dict[str, bytes]:
    """A conversion that is interrupted before a record; what it left."""

    def progress(what: str, done: int, total: int) -> None:
        if what == f"encoding {record}":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        endor.convert(source, destination, progress=progress, **settings)
    return contents(destination)


def whole(source: Path, **settings) -> dict[str, bytes]:
    endor.convert(source, source.parent / "whole", **settings)
    return contents(source.parent / "whole")


@pytest.mark.parametrize("settings", [{}, PRUNED, {"values": "raw", "keep_negative_zero": True}], ids=str)
def test_it_goes_on_and_the_bytes_are_the_same(source, settings):
    expected, destination = whole(source, **settings), source.parent / "dst"
    left = interrupt_at(source, destination, **settings)
    assert "endor.json" not in left
    kept = {name: (destination / name).stat().st_ino for name in left if name.endswith("c/0")}
    assert len(kept) > 2
    conversion = run_conversion(source, destination, settings=ConvertSettings(**settings))
    assert contents(destination) == expected
    assert conversion.resumed_parts == len(kept)
    assert {name: (destination / name).stat().st_ino for name in kept} == kept


def test_an_interrupted_command_goes_on(source):
    expected, destination = whole(source), source.parent / "dst"
    with subprocess.Popen([*COMMAND, source, destination], stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (destination / "parts/embedding.0").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have been quicker than the signal
        assert process.returncode == 130
        assert said.splitlines()[-1] == b"endor: interrupted"
        assert subprocess.run([*COMMAND, source, destination], check=False).returncode == 0
    assert contents(destination) == expected


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (PRUNED, PRUNED | {"sparsity": 0.6}, r"settings sparsity 0\.6, expected 0\.5, as when it was interr"),
        ({}, {"dtype": "bfloat16"}, r"settings dtype 'bfloat16', expected None"),
        ({}, {"values": "raw"}, r"settings values 'raw', expected 'auto'"),
        ({}, {"keep_negative_zero": True}, r"settings keep_negative_zero True, expected False"),
        ({}, {"shards": 2}, r"settings shards 2, expected 1"),
    ],
)
def test_other_settings_are_refused_by_name(source, before, now, message):
    left = interrupt_at(source, source.parent / "dst", **before)
    for convert in (run_conversion, survey_conversion):  # a dry run too
        with pytest.raises(ResumeError, match=rf"destination .*dst: got {message}"):
            convert(source, source.parent / "dst", settings=ConvertSettings(**now))
    assert contents(source.parent / "dst") == left
    survey_conversion(source, source.parent / "dst", settings=ConvertSettings(**before))
    assert contents(source.parent / "dst") == left


def test_another_version_is_refused(source, monkeypatch):
    interrupt_at(source, source.parent / "dst")
    monkeypatch.setattr(pipeline, "VERSION", "9.9")
    with pytest.raises(ResumeError, match=r"got version '9\.9', expected '0\."):
        endor.convert(source, source.parent / "dst")


def test_a_changed_config_is_refused(source):
    interrupt_at(source, source.parent / "dst")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    with pytest.raises(ResumeError, match=r"got files config\.json '.*', expected '"):
        endor.convert(source, source.parent / "dst")


def flip_a_byte_of(source: Path, tensor: str) -> None:
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + size])[tensor]["data_offsets"]
    data[8 + size + (begin + end) // 2 // 4 * 4] ^= 1  # a mantissa bit: no codec changes
    path.write_bytes(data)


@pytest.mark.parametrize(
    "tensor",
    [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.input_layernorm.weight",
    ],
)
def test_one_other_byte_of_a_finished_record_is_refused_by_name(source, tensor):
    interrupt_at(source, source.parent / "dst", "layers.2")
    flip_a_byte_of(source, tensor)
    with pytest.raises(ResumeError, match=rf"tensor '{tensor}' of .*source: got other bytes than when"):
        endor.convert(source, source.parent / "dst")


def test_a_change_in_what_was_not_reached_gives_the_conversion_of_the_new_source(source):
    interrupt_at(source, source.parent / "dst", "layers.2")
    flip_a_byte_of(source, "model.layers.2.mlp.up_proj.weight")
    endor.convert(source, source.parent / "dst")
    assert contents(source.parent / "dst") == whole(source)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["parts/layers.0.0/c/0", "parts/embedding.1/zarr.json"])
def test_a_damaged_part_is_written_again(source, name, damage):
    expected, destination = whole(source), source.parent / "dst"
    interrupt_at(source, destination)
    damage(destination / name)
    endor.convert(source, destination)
    assert contents(destination) == expected


def test_the_index_behind_a_part_is_checked_too(source):
    expected, destination = whole(source), source.parent / "dst"
    interrupt_at(source, destination)
    path = destination / "parts/layers.0.0/c/0"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    endor.convert(source, destination)
    assert contents(destination) == expected


def test_leftovers_of_half_a_part_are_removed(source):
    expected, destination = whole(source), source.parent / "dst"
    interrupt_at(source, destination)
    (destination / "parts/layers.1.0/c").mkdir(parents=True)
    (destination / "parts/layers.1.0/c/0.tmp").write_bytes(b"half")
    (destination / "parts/layers.0.0/c/0.tmp").write_bytes(b"beside a finished one")
    (destination / "endor.json.tmp").write_text("{")
    endor.convert(source, destination)
    assert contents(destination) == expected


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_a_journal_that_is_cut_off_costs_only_what_it_no_longer_tells(source, keep):
    expected, destination = whole(source), source.parent / "dst"
    interrupt_at(source, destination)
    journal = destination / "endor.journal"
    data = journal.read_bytes()
    first = data.index(b"\n") + 1
    journal.write_bytes(data[: first + int(keep * (len(data) - first))])
    endor.convert(source, destination)
    assert contents(destination) == expected


def test_lines_after_a_damaged_one_do_not_count(source):
    expected, destination = whole(source), source.parent / "dst"
    interrupt_at(source, destination)
    journal = destination / "endor.journal"
    data = bytearray(journal.read_bytes())
    data[data.index(b"\n") + 40] ^= 1
    journal.write_bytes(data)
    assert len(read_lines(bytes(data))[0]) == 1
    endor.convert(source, destination)
    assert contents(destination) == expected


def test_without_resume_leftovers_are_refused_and_kept(source):
    left = interrupt_at(source, source.parent / "dst")
    message = r"what an interrupted conversion left, .*remove it first, or.*without --no-resume"
    for attempt in (endor.convert, lambda *paths, resume: survey(*paths, resume=resume)):
        with pytest.raises(DestinationExistsError, match=message):
            attempt(source, source.parent / "dst", resume=False)
    assert contents(source.parent / "dst") == left


def survey(source: Path, destination: Path, *, resume: bool) -> None:
    survey_conversion(source, destination, settings=ConvertSettings(), resume=resume)


@pytest.mark.parametrize("name", ["letter.txt", "parts/letter.txt"])
def test_a_foreign_file_among_leftovers_is_refused(source, name):
    interrupt_at(source, source.parent / "dst")
    (source.parent / "dst" / name).write_text("keep me")
    with pytest.raises(DestinationExistsError, match=rf"got '{name}' beside what an interrupted"):
        endor.convert(source, source.parent / "dst")
    assert (source.parent / "dst" / name).read_text() == "keep me"


def test_a_beginning_without_any_part_leaves_nothing_and_binds_nobody(source):
    destination = source.parent / "dst"
    with pytest.raises(KeyboardInterrupt):
        endor.convert(source, destination, progress=raise_at("encoding embedding"))
    assert not destination.exists()
    destination.mkdir()
    with pytest.raises(KeyboardInterrupt):
        endor.convert(source, destination, progress=raise_at("encoding embedding"))
    assert list(destination.iterdir()) == []


def raise_at(wanted: str):
    def progress(what: str, done: int, total: int) -> None:
        if what == wanted:
            raise KeyboardInterrupt

    return progress


def test_a_finished_checkpoint_whose_journal_is_still_there_is_settled(source):
    expected, destination = whole(source), source.parent / "dst"
    interrupt_at(source, destination, "final")
    journal = (destination / "endor.journal").read_bytes()
    endor.convert(source, destination)
    (destination / "endor.journal").write_bytes(journal)  # killed after the manifest, before the journal went
    with pytest.raises(ResumeError, match="settings values"):
        endor.convert(source, destination, values="raw")
    endor.convert(source, destination)
    assert contents(destination) == expected
    with pytest.raises(DestinationExistsError, match="a finished checkpoint"):
        endor.convert(source, destination)


def test_the_place_of_the_source_may_be_another(source):
    interrupt_at(source, source.parent / "dst")
    moved = source.rename(source.parent / "elsewhere")
    endor.convert(moved, source.parent / "dst")
    assert contents(source.parent / "dst") == whole(moved)


def test_two_processes_do_not_write_one_checkpoint(source):
    destination = source.parent / "dst"
    model = write_tiny(source.parent / "large", MODEL | {"num_hidden_layers": 40})
    with subprocess.Popen([*COMMAND, model, destination], stdout=subprocess.DEVNULL) as first:
        while not (destination / "parts/layers.0.0").exists():
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it holds the lock for as long as we look
        with pytest.raises(
            DestinationBusyError, match=r"destination .*dst: got another process writing there"
        ):
            endor.convert(model, destination)
        second = subprocess.run([*COMMAND, model, destination], capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert second.stderr.startswith(f"endor: destination {destination}: got another process writing there")
    with endor.open(destination) as checkpoint:
        assert len(checkpoint.manifest.records) == 42


def test_two_that_begin_together_give_one_checkpoint(source):
    expected, destination = whole(source), source.parent / "dst"
    both = [
        subprocess.Popen([*COMMAND, source, destination], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 1], said
    assert contents(destination) == expected


@pytest.mark.parametrize("where", ["source", "source/sub", ".", "link/sub"])
def test_source_and_destination_lie_apart(source, where):
    (source.parent / "link").symlink_to(source)
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    with pytest.raises(InvalidInputError, match=r"destination .*: got .*source.*choose another path"):
        endor.convert(source, source.parent / where)
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
    endor.convert(source, source.parent / "dst")
    with pytest.raises(InvalidInputError, match="inside the source"):
        endor.export(source.parent / "dst", source.parent / "dst" / "out")
    shutil.rmtree(source.parent / "dst")
