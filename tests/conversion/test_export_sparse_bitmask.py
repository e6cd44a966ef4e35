"""Export as sparse-bitmask: the bytes of the library that had the layout, and the same bytes again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import endor_jax as endor
from endor_jax.cli.main import app
from endor_jax.errors import OptionError
from endor_jax.sources import open_source
from tests.tiny_models import LLAMA, OPT_350M, write_tiny

GOLDEN = Path(__file__).parents[1] / "sources" / "golden" / "sparse_bitmask"


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_the_files_are_those_of_compressed_tensors(tmp_path: Path) -> None:
    endor.convert(GOLDEN / "dense", tmp_path / "checkpoint")
    endor.export(tmp_path / "checkpoint", tmp_path / "out", to="sparse-bitmask")
    assert contents(tmp_path / "out") == contents(GOLDEN / "compressed")


PROJECTIONS = ["model.decoder.project_in", "model.decoder.project_out"]


@pytest.mark.parametrize(
    ("config", "values", "dense"),
    [(LLAMA, "int8", []), (OPT_350M, "auto", PROJECTIONS)],
    ids=["llama", "opt-350m"],
)
def test_exporting_again_gives_the_same_bytes(
    tmp_path: Path, config: dict, values: str, dense: list[str]
) -> None:
    source = write_tiny(tmp_path / "source", config, dtype="bfloat16", tokenizer=True)
    endor.convert(source, tmp_path / "first", prune="magnitude", sparsity=0.5, values=values)
    endor.export(tmp_path / "first", tmp_path / "out1", to="sparse-bitmask")
    endor.convert(tmp_path / "out1", tmp_path / "second")
    endor.export(tmp_path / "second", tmp_path / "out2", to="sparse-bitmask")
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert set(contents(tmp_path / "out1")) == {"config.json", "model.safetensors", "tokenizer.json"}
    stated = json.loads(contents(tmp_path / "out1")["config.json"])["quantization_config"]
    assert stated["sparsity_config"]["ignore"] == ["lm_head", *dense]


def test_zeros_of_a_dense_file_stay_where_they_are_without_pruning(tmp_path: Path) -> None:
    """How pruned checkpoints are published: dense files need no reader of their own."""
    endor.convert(GOLDEN / "dense", tmp_path / "checkpoint", prune="none")
    with endor.open(tmp_path / "checkpoint") as opened, open_source(GOLDEN / "dense") as dense:
        name, place = "model.layers.0.mlp.up_proj.weight", ("layers.0", "mlp.up.weight")
        got, expected = opened.read_tensor(*place), dense.read(name)
        assert np.array_equal(got == 0, expected == 0)
        nonzero = np.count_nonzero(expected)
        assert opened.manifest.record(place[0]).stats[place[1]].nonzero == nonzero < expected.size


def test_the_command_takes_the_format_and_refuses_others(tmp_path: Path) -> None:
    endor.convert(GOLDEN / "dense", tmp_path / "checkpoint")
    command = ["export", str(tmp_path / "checkpoint"), str(tmp_path / "out"), "--json", "--to"]
    done = CliRunner().invoke(app, [*command, "sparse-bitmask"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"] == ["config.json", "model.safetensors"]
    with pytest.raises(OptionError, match=r"got 'onnx', expected one of safetensors, sparse-bitmask"):
        endor.export(tmp_path / "checkpoint", tmp_path / "other", to="onnx")
    assert not (tmp_path / "other").exists()
