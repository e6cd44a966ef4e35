"""`endor bench pruning`: a grid of cells, a record that grows, a picture, the tables of a document.

`python -m tests.bench.test_bench_pruning` writes the tables of docs/pruning.md anew from its records.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import endor_jax as endor
from endor_jax.bench import pruning, pruning_text
from endor_jax.bench.plot_pruning import plot_pruning
from endor_jax.bench.pruning_cells import DENSE, Cell, Grid, PruningSettings
from endor_jax.bench.pruning_record import MeasuredCell, PruningRecord, read_record
from endor_jax.bench.pruning_scores import dense_model, score
from endor_jax.bench.pruning_table import cell_row, ratio_headings, ratio_rows, record_markdown
from endor_jax.bench.pruning_text import PruningText
from endor_jax.bench.record_file import write_record
from endor_jax.cli.main import app
from endor_jax.errors import InvalidInputError, OptionError, ResumeError
from endor_jax.evaluate.compare import compare
from tests.tiny_models import LLAMA, write_tiny

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "pruning.md"
TABLES = re.compile(r"(<!-- from (benchmarks/\S+\.json) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SMALL = ["--calibration-blocks", "2", "--evaluation-blocks", "3", "--divergence-blocks", "2"]
drawing = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="no matplotlib (pip install 'endor_jax[plot]')"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LLAMA | {"num_hidden_layers": 2, "max_position_embeddings": 64}
    return write_tiny(tmp_path_factory.mktemp("pruning") / "tiny", config, tokenizer=True)


def measured_cell(cell: Cell = DENSE, *, ratio: float = 1.0) -> MeasuredCell:
    return MeasuredCell(
        cell=cell,
        perplexity=12.5 * ratio,
        standard_error=0.25,
        ratio=ratio,
        ratio_standard_error=0.001,
        divergence=0.1,
        divergence_standard_error=0.01,
        agreement=0.875,
        sparsity=cell.sparsity,
        bytes_per_weight=2 * (1 - cell.sparsity) or 2.0,
        stored_bytes=100_000_000,
        convert_seconds=60.4,
        stated_peak_bytes=2_000_000_000,
        peak_bytes=1_500_000_000,
        commit=None,
        versions={"jax": "0"},
    )


def record_of(*cells: MeasuredCell) -> PruningRecord:
    shared = {"model": "m", "dtype": "bfloat16", "evaluation_blocks": 3, "length": 64}
    return PruningRecord(shared, {}, cells)


def test_a_grid_is_every_combination_and_the_dense_model_once_per_values():
    grid = Grid(("none", "wanda"), (0.3, 0.5), (None, "row"), ("uniform", "owl"), ("auto", "int8"))
    cells = grid.cells()
    assert cells[:2] == (DENSE, Cell("none", 0.0, values="int8"))
    others = itertools.product((0.3, 0.5), (None, "row"), ("uniform", "owl"), ("auto", "int8"))
    assert cells[2:] == tuple(Cell("wanda", *each) for each in others)


def test_groups_are_one_sparsity_whatever_is_asked():
    cells = Grid(("magnitude",), (0.3, 0.7), ("2:4", None)).cells()
    assert cells == (Cell("magnitude", 0.5, "2:4"), Cell("magnitude", 0.3), Cell("magnitude", 0.7))
    assert cells[0].options == ("--prune", "magnitude", "--values", "auto", "--mask-structure", "2:4")
    assert cells[1].options == ("--prune", "magnitude", "--values", "auto", "--sparsity", "0.3")


def test_a_target_has_a_name_of_its_own_and_comes_to_convert():
    cells = Grid(("admm",), (0.5,), targets=("layer", "model")).cells()
    assert [cell.series for cell in cells] == ["admm", "admm+model"]
    assert cells[1].options[-2:] == ("--calibration-target", "model")


def test_a_cell_that_convert_refuses_is_refused_before_anything_is_measured(source: Path, tmp_path: Path):
    with pytest.raises(OptionError, match=r"prune: got 'thinet', expected none, magnitude"):
        Cell("thinet", 0.5)
    options = ["--model", str(source), "--work-dir", str(tmp_path / "work"), "--method", "thinet"]
    done = CliRunner().invoke(app, ["bench", "pruning", *options])
    assert done.exit_code == 2
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "a.txt", "own_text": True}, r"text: got a\.txt, and one of the model's own, expected one"),
        ({"divergence_blocks": 41}, r"divergence blocks: got 41, expected 1 to 40"),
        ({"length": 0}, r"calibration length: got 0, expected 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message: str):
    with pytest.raises(OptionError, match=message):
        PruningSettings("model", **settings)


def test_only_a_method_that_looks_at_a_text_is_told_which(tmp_path: Path):
    text = PruningText("text.txt", np.zeros((1, 64), np.int32))
    for cell in (DENSE, Cell("magnitude", 0.5), Cell("wanda", 0.5), Cell("magnitude", 0.5, allocation="owl")):
        arguments = pruning._arguments(cell, tmp_path, PruningSettings("model"), text)
        assert ("--calibration" in arguments) == (cell.method == "wanda" or cell.allocation == "owl")


def test_cells_are_scored_added_to_the_record_and_not_measured_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    work, record = tmp_path / "work", tmp_path / "record.json"
    command = [
        "bench",
        "pruning",
        "--model",
        source,
        "--work-dir",
        work,
        "--record",
        record,
        *SMALL,
        "--json",
    ]

    def run(*options: str) -> dict:
        done = CliRunner().invoke(app, [*map(str, command), *options])
        assert done.exit_code == 0, done.output
        assert json.loads(record.read_text()) == json.loads(done.stdout)
        return json.loads(done.stdout)

    values = run("--method", "magnitude", "--method", "wanda", "--sparsity", "0.5")
    magnitude, wanda = values["cells"]
    assert magnitude["cell"]["method"] == "magnitude"
    # The text is Python's, the model random: of one version it gains by pruning, of another it loses.
    assert abs(wanda["ratio"] - 1) > 0.001
    assert wanda["divergence"] > 0.001
    assert 0 < wanda["agreement"] < 1
    assert wanda["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert 0.6 < wanda["bytes_per_weight"] < 1.2
    assert 2**26 < wanda["peak_bytes"] <= wanda["stated_peak_bytes"]
    assert wanda["convert_seconds"] > 0
    assert wanda["versions"]["jax"]
    shared = values["settings"]
    assert (shared["model"], shared["data"], shared["length"]) == ("tiny", "pydoc_data.topics", 64)
    kept = f"tiny-bfloat16-{pruning._stamp(source)}-dense"
    losses = f"{kept}-{shared['scored_digest']}-from-2.npy"
    assert sorted(path.name for path in work.iterdir()) == [losses, f"{kept}.endor"]

    def refuse(arguments):
        raise AssertionError(f"measured again: {arguments}")

    monkeypatch.setattr(pruning, "run_verb", refuse)
    assert run("--method", "wanda", "--method", "magnitude", "--sparsity", "0.5") == values
    namesake = write_tiny(tmp_path / "other" / "tiny", LLAMA | {"num_hidden_layers": 1}, tokenizer=True)
    monkeypatch.undo()
    again = [namesake if each == source else each for each in command]
    other = CliRunner().invoke(app, [*map(str, again), "--method", "none"])
    assert other.exit_code == 1
    assert re.search(r"record .*: got .*weights_digest", other.stderr)
    monkeypatch.setattr(pruning, "run_verb", refuse)
    other = CliRunner().invoke(app, [*map(str, command), "--seed", "1", "--method", "none"])
    assert other.exit_code == 1
    assert re.search(r"record .*: got .*seed 0.*, expected .*seed 1", other.stderr)
    assert json.loads(record.read_text()) == values


def test_scores_are_those_of_comparing_all_blocks(source: Path, tmp_path: Path):
    checkpoints = tmp_path / "dense.endor", tmp_path / "pruned.endor"
    endor.convert(source, checkpoints[0])
    endor.convert(source, checkpoints[1], prune="magnitude", sparsity=0.5)
    blocks = np.random.default_rng(0).integers(0, 256, (4, 32), np.int32)
    whole = compare(*checkpoints, blocks, generated_tokens=0)
    text = PruningText(None, blocks)
    for first in (1, 4, 1):
        found = score(checkpoints[1], dense_model(checkpoints[0], text, divergence_blocks=first))
        assert found.perplexity.value == pytest.approx(whole.b.perplexity.value, rel=1e-5)
        assert found.perplexity.tokens == whole.tokens
        assert found.ratio == pytest.approx(whole.ratio, rel=1e-5)
        assert found.ratio_standard_error == pytest.approx(whole.ratio_standard_error, rel=1e-3)
        assert found.first.tokens == first * 31
    same = score(checkpoints[0], dense_model(checkpoints[0], text, divergence_blocks=1))
    assert (same.ratio, same.ratio_standard_error) == (1.0, 0.0)
    assert (same.first.divergence.mean, same.first.agreement) == (0.0, 1.0)
    for kept in tmp_path.glob("dense-*-from-1.npy"):  # the dense model is scored once
        np.save(kept, np.load(kept) - 1)
    found = score(checkpoints[1], dense_model(checkpoints[0], text, divergence_blocks=1))
    assert found.ratio == pytest.approx(whole.ratio * np.exp(3 / 4), rel=1e-5)


def test_a_model_writes_as_many_blocks_as_are_asked_for_and_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pruning_text, "OPENINGS", 4)
    started = tmp_path / "started"
    started.mkdir()
    for file in source.iterdir():
        (started / file.name).write_bytes(file.read_bytes())
    tokenizer = json.dumps({"bos_token": "<end>", "tokenizer_class": "PreTrainedTokenizerFast"})
    (started / "tokenizer_config.json").write_text(tokenizer)
    dense = tmp_path / "dense.endor"
    endor.convert(started, dense)
    settings = PruningSettings(
        "tiny", own_text=True, calibration_blocks=3, evaluation_blocks=2, divergence_blocks=1, length=32
    )
    text = pruning_text.pruning_text(settings, dense)
    assert text.scored.shape == (2, 32)
    assert text.path is not None
    written = Path(text.path).read_text()
    assert written.count("<end>") > 1
    monkeypatch.setattr(pruning_text, "_write_own", None)
    assert pruning_text.pruning_text(settings, dense).digest == text.digest


def test_a_model_without_start_token_writes_nothing(source: Path, tmp_path: Path):
    endor.convert(source, tmp_path / "dense.endor")
    settings = PruningSettings("tiny", own_text=True)
    with pytest.raises(InvalidInputError, match=r"text of .*dense.endor: got no start token"):
        pruning_text.pruning_text(settings, tmp_path / "dense.endor")


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path):
    path = tmp_path / "record.json"
    assert read_record(path) is None
    path.touch()  # as before measuring
    assert read_record(path) is None
    record = record_of(measured_cell(), measured_cell(Cell("wanda", 0.5, "2:4"), ratio=2.0))
    write_record(record, path)
    assert read_record(path) == record
    assert record.measured == {DENSE, Cell("wanda", 0.5, "2:4")}


@pytest.mark.parametrize("text", ["[]", "{}", "no JSON", '{"cells": [{"cell": {}}]}'])
def test_a_file_that_is_no_record_is_not_added_to(tmp_path: Path, text: str):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ResumeError, match=r"record .*: got something else .*expected a record of this suite"):
        read_record(path)


def test_tables_are_ordered_and_leave_open_what_is_not_measured():
    cells = [Cell("wanda", 0.5, values="int8"), Cell("magnitude", 0.5), Cell("wanda", 0.3), DENSE]
    record = record_of(*(measured_cell(cell, ratio=1 + 100 * cell.sparsity) for cell in cells))
    assert ratio_headings(record) == ("method, values", "0 %", "30 %", "50 %")
    assert ratio_rows(record) == [
        ("dense", "1.000", "", ""),
        ("magnitude", "", "", "51.0"),
        ("wanda", "", "31.0", ""),
        ("wanda, int8", "", "", "51.0"),
    ]
    row = (
        "wanda",
        "50 %",
        "int8",
        "638 ± 0.250",
        "51.0 ± 0.001",
        "0.100",
        "87.5 %",
        "1.000",
        "100",
        "60",
        "1.50",
    )
    assert cell_row(record.cells[0]) == row
    assert f"| {' | '.join(row)} |\n" in record_markdown(record)


@drawing
def test_a_picture_is_drawn_of_whatever_there_is(tmp_path: Path):
    cells = [Cell(method, sparsity) for method in ("wanda", "sparsegpt") for sparsity in (0.3, 0.5)]
    cells += [DENSE, Cell("none", 0.0, values="int4"), Cell("sparsegpt", 0.5, "2:4", values="int8")]
    many = [measured_cell(cell, ratio=1 + cell.sparsity) for cell in cells]
    for number, record in enumerate((record_of(*many), record_of(measured_cell()))):
        plot = tmp_path / f"{number}.svg"
        plot_pruning(record, plot)
        assert plot.read_bytes().startswith(b"<?xml")


def tables_from_records() -> str:
    """The document, with the tables that its records give."""

    def filled(found: re.Match[str]) -> str:
        record = read_record(DOCUMENT.parent / found[2])
        assert record is not None, found[2]
        return f"{found[1]}{record_markdown(record)}{found[4]}"

    return TABLES.sub(filled, DOCUMENT.read_text())


def test_no_cell_of_the_document_took_more_memory_than_was_stated():
    for _, name, *_ in TABLES.findall(DOCUMENT.read_text()):
        record = read_record(DOCUMENT.parent / name)
        assert record is not None
        for each in record.cells:
            assert each.peak_bytes <= each.stated_peak_bytes, str(each.cell)


def test_the_tables_of_the_document_are_those_of_its_records():
    assert len(TABLES.findall(DOCUMENT.read_text())) == 2
    assert tables_from_records() == DOCUMENT.read_text(), "python -m tests.bench.test_bench_pruning"


if __name__ == "__main__":
    DOCUMENT.write_text(tables_from_records())
