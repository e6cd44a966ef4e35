"""Export as an Orbax checkpoint: what others read, what is imported again, what is left of a failure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import endor_jax as endor
from endor_jax.conversion import export_model
from endor_jax.errors import DestinationExistsError, InvalidInputError, StorageError
from endor_jax.sources import open_source
from tests.tiny_models import LLAMA, OPT, random_tensors, write_tiny

STAMPED = {"_CHECKPOINT_METADATA", "commit_success.txt"}
"""Orbax writes the time into the one and the directory into the other."""


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in STAMPED)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    "config", [LLAMA | {"num_hidden_layers": 1}, OPT | {"num_hidden_layers": 2}], ids=["llama", "opt"]
)
def test_exporting_again_gives_the_same_bytes(tmp_path: Path, config: dict) -> None:
    source = write_tiny(tmp_path / "source", config, dtype="bfloat16", tokenizer=True)
    endor.convert(source, tmp_path / "first")
    endor.export(tmp_path / "first", tmp_path / "out1", to="orbax")
    with open_source(tmp_path / "out1") as opened:
        expected = random_tensors(config, dtype="bfloat16")
        assert set(opened.tensors) == set(expected)
        for name, array in expected.items():
            assert opened.read(name).tobytes() == array.tobytes(), name
    endor.convert(tmp_path / "out1", tmp_path / "second")
    endor.export(tmp_path / "second", tmp_path / "out2", to="orbax")
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert {"config.json", "key_map.json", "tokenizer.json"} < set(contents(tmp_path / "out1"))
    assert {path.name for path in (tmp_path / "out1" / "params").iterdir()} >= STAMPED


def test_orbax_reads_the_tree_without_us(tmp_path: Path) -> None:
    endor.convert(write_tiny(tmp_path / "source"), tmp_path / "checkpoint")
    endor.export(tmp_path / "checkpoint", tmp_path / "out", to="orbax")
    tree = ocp.v1.load(str(tmp_path / "out" / "params"))
    expected = random_tensors(LLAMA)["model.layers.3.mlp.up_proj.weight"]
    np.testing.assert_array_equal(tree["layers"]["3"]["mlp"]["up"]["weight"], expected)
    key_map = json.loads((tmp_path / "out" / "key_map.json").read_text())
    assert key_map["tensors"]["model.layers.{i}.mlp.up_proj.weight"] == "layers.{i}.mlp.up.weight"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    endor.convert(write_tiny(tmp_path / "source"), tmp_path / "checkpoint")
    for name in ("params", "key_map.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        with pytest.raises(DestinationExistsError, match=name):
            endor.export(tmp_path / "checkpoint", tmp_path / name, to="orbax")
        assert [path.name for path in (tmp_path / name).iterdir()] == [name]


def test_a_failure_leaves_nothing_and_what_a_killed_export_left_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endor.convert(write_tiny(tmp_path / "source"), tmp_path / "checkpoint")
    out, decode, calls = tmp_path / "new" / "out", export_model.decode, []

    def fail_late(tensor):
        calls.append(tensor)
        if len(calls) > 12:
            raise InvalidInputError("a tensor", got="nothing", expected="something", fix="mend it")
        return decode(tensor)

    with monkeypatch.context() as patched:
        patched.setattr(export_model, "decode", fail_late)
        with pytest.raises(InvalidInputError, match="mend it"):
            endor.export(tmp_path / "checkpoint", out, to="orbax")
    assert not (tmp_path / "new").exists()
    # What a process that is killed leaves: another model's arrays, which must not get into this one.
    out.mkdir(parents=True)
    ocp.v1.partial.save(str(out / "params"), {"other": np.ones(3)})
    mine = [out / name / "mine" for name in ("params.orbax", "params.partial_save_notes", "params2")]
    for file in mine:
        file.parent.mkdir()
        file.touch()
    endor.export(tmp_path / "checkpoint", out, to="orbax")
    assert all(file.exists() for file in mine)
    assert not list(out.glob("params.partial_save*tmp*")) + list(out.glob("params.partial_save"))
    with open_source(out) as opened:
        assert len(opened.tensors) == len(random_tensors(LLAMA))


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endor.convert(write_tiny(tmp_path / "source"), tmp_path / "checkpoint")

    def full(*_: object) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: no space left on device")

    monkeypatch.setattr(ocp.v1.partial, "save", full)
    with pytest.raises(StorageError, match="no space left on device"):
        endor.export(tmp_path / "checkpoint", tmp_path / "out", to="orbax")
    assert not (tmp_path / "out").exists()
