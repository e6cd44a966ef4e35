"""A search with real conversions and real scores: Wanda through the library, magnitude as a command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import endor_jax as endor
from endor_jax.cli.main import app
from endor_jax.conversion.pipeline import run_conversion
from endor_jax.conversion.settings import CalibrationText, ConvertSettings
from endor_jax.errors import InvalidInputError
from endor_jax.evaluate.perplexity import perplexity_of_blocks
from endor_jax.search import bisection, highest_sparsity
from endor_jax.search.result import to_json
from endor_jax.search.scoring import quality_of
from endor_jax.search.text import search_text
from endor_jax.sources.opening import open_source
from endor_jax.text import load_tokenizer
from endor_jax.text.blocks import shuffled_blocks
from endor_jax.text.corpus import read_corpus
from tests.search.faked import Faked
from tests.tiny_models import LLAMA, write_tiny

CALIBRATED, SCORED, LENGTH = 3, 4, 24


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    config = LLAMA | {"num_hidden_layers": 2}
    return write_tiny(tmp_path_factory.mktemp("search") / "source", config, tokenizer=True)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text(read_corpus()[100_000:101_000])
    return str(path)


@pytest.fixture
def one_try(monkeypatch):
    """Only 49 and 50 percent."""
    monkeypatch.setattr(bisection, "LOWEST", 49)
    monkeypatch.setattr(bisection, "HIGHEST", 50)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_wanda_gives_what_converting_to_that_sparsity_gives(source, text, tmp_path, one_try):
    calibration = CalibrationText(text, blocks=CALIBRATED, length=LENGTH)
    settings = ConvertSettings(prune="wanda", sparsity=0.5, dtype="bfloat16", calibration=calibration)

    def stop(what: str, done: int, total: int) -> None:
        if what == "try 1: 50 %, encoding layers.1":
            raise KeyboardInterrupt

    asked = {"settings": settings, "max_increase": 100.0, "scored_blocks": SCORED}
    with pytest.raises(KeyboardInterrupt):
        highest_sparsity(source, tmp_path / "dst", progress=stop, **asked)
    assert (tmp_path / "dst.search" / "0.50" / "endor.journal").exists()
    announced = []
    found = highest_sparsity(source, tmp_path / "dst", announce=announced.append, **asked)
    assert [each.percent for each in found.tries] == [50]
    assert not (tmp_path / "dst.search").exists()
    assert [set(survey.sparsities.values()) for survey in announced] == [{0.5}]
    run_conversion(source, tmp_path / "by hand", settings=replace(settings, sparsity=0.5))
    assert contents(tmp_path / "dst") == contents(tmp_path / "by hand")
    assert found.chosen.stored_bytes == sum(map(len, contents(tmp_path / "dst").values()))
    assert found.check == by_hand(source, tmp_path, text)
    assert json.loads((tmp_path / "dst.search.json").read_text()) == to_json(found)


def by_hand(source: Path, directory: Path, text: str):
    """The quality of `directory`/dst on the blocks behind those for calibration and search."""
    run_conversion(source, directory / "dense", settings=ConvertSettings(dtype="bfloat16"))
    ids = load_tokenizer(source).encode(read_corpus(text))
    blocks = shuffled_blocks(ids, LENGTH, seed=0, first=CALIBRATED + SCORED, count=SCORED)
    losses, perplexities = [], []
    for name in ("dst", "dense"):
        with endor.load(directory / name, context=LENGTH, batch=4) as model:
            losses.append(np.stack(model.losses(blocks)))
            perplexities.append(perplexity_of_blocks(model, blocks).value)
    quality = quality_of(losses[0], losses[1])
    assert (quality.perplexity, quality.dense_perplexity) == tuple(perplexities)
    assert quality.increase == pytest.approx(perplexities[0] / perplexities[1] - 1)
    difference = (losses[0].astype(np.float64) - losses[1]).ravel()
    error = np.exp(difference.mean()) * difference.std(ddof=1) / difference.size**0.5
    assert quality.standard_error == pytest.approx(error)
    return quality


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_the_command_reports_all_tries_and_the_check(source, tmp_path, one_try):
    options = ("--prune", "magnitude", "--max-perplexity-increase", "900%", "--calibration-length", 8)
    code, out, said = run("convert", source, tmp_path / "dst", *options, "--json")
    assert code == 0, said
    values = json.loads(out)
    assert values == json.loads((tmp_path / "dst.search.json").read_text())
    assert [each["sparsity"] for each in values["tries"]] == [0.5]
    assert values["sparsity"] == 0.5
    assert values["max_increase"] == 9.0
    assert values["check"]["tokens"] == 40 * 7
    assert values["stored_bytes"] < values["dense_stored_bytes"]
    code, _, said = run("convert", source, tmp_path / "dst", *options)
    assert (code, said.count("\n")) == (1, 1)
    assert "got a finished checkpoint" in said


def test_the_command_shows_a_table(source, tmp_path, monkeypatch):
    faked = Faked(lambda percent: percent / 1000, lambda percent: 0.04)
    faked.install(monkeypatch)
    options = ("--prune", "magnitude", "--max-perplexity-increase", "5.05%")
    code, out, said = run("convert", source, tmp_path / "dst", *options)
    assert code == 0, said
    assert "perplexity at most +5.05%" in out
    assert said.splitlines()[:5] == [
        "checking the source",
        "dense",
        "try 1: 50 %",
        "will write about 50 B, with at most 1 GiB of resident memory",
        "scoring a try takes more: what fits of it is kept in free memory",
    ]
    assert said.count("resident memory") == 1
    assert "│   1 │     50 % │" in out
    assert "│ +5.00% ± 0.00% │ +4.00% ± 0.00% │" in out
    assert "check on other text: +4.00% ± 0.00% (perplexity 7.685, dense 7.389, 160 tokens)" in out
    assert f"{tmp_path / 'dst'}: 50 % sparsity" in out


def test_a_search_that_finds_nothing_shows_its_tries_and_ends_with_1(source, tmp_path, monkeypatch):
    faked = Faked(lambda percent: percent / 1000, lambda percent: 0.06)
    faked.install(monkeypatch)
    options = ("--prune", "magnitude", "--max-perplexity-increase", "0.05")
    code, out, said = run("convert", source, tmp_path / "dst", *options)
    assert (code, out) == (1, "")
    assert "│   1 │     50 % │" in said
    assert "endor: search for " in said
    code, out, _ = run("convert", source, tmp_path / "dst", *options, "--json")
    values = json.loads(out)
    assert (code, values["path"], values["max_increase"]) == (1, None, 0.05)
    assert values["tries"][0]["sparsity"] == 0.5
    assert any(each["check"] is not None for each in values["tries"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "max perplexity increase: got it without pruning, expected a pruning method"),
        (("--prune", "wanda", "--sparsity", "0.3"), "--max-perplexity-increase: got --sparsity 0.3 too"),
        (("--prune", "wanda", "--dry-run"), "--max-perplexity-increase: got --dry-run too"),
        (("--prune", "wanda", "--mask-structure", "2:4"), "max perplexity increase: got it with structure="),
    ],
)
def test_options_that_do_not_go_together(source, tmp_path, options, message):
    code, _, said = run("convert", source, tmp_path / "dst", "--max-perplexity-increase", "5%", *options)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"endor: {message}")
    assert not list(tmp_path.iterdir())


def test_a_budget_that_is_none_is_usage(source, tmp_path):
    code, _, said = run(
        "convert", source, tmp_path / "dst", "--prune", "wanda", "--max-perplexity-increase=-5%"
    )
    assert (code, said.startswith("endor: max perplexity increase: got '-5%'")) == (2, True)


def test_the_three_parts_of_the_text_share_nothing(source, text):
    with open_source(source) as opened:
        found = search_text(opened, CalibrationText(text, blocks=CALIBRATED, length=LENGTH, seed=5), SCORED)
    ids = load_tokenizer(source).encode(read_corpus(text))
    blocks = shuffled_blocks(ids, LENGTH, seed=5, count=CALIBRATED + 2 * SCORED)
    np.testing.assert_array_equal(np.concatenate([found.search, found.check]), blocks[CALIBRATED:])
    assert len(found.search) == len(found.check) == SCORED


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (
            {"blocks": 40},
            r"40 to calibrate, 4 to search with, 4 to check with\): blocks of a text: got \S+ tokens",
        ),
        ({"length": 1}, "sequence_length 1, expected at least 2"),
        ({"length": 1000}, "got blocks of 1000 tokens, expected at most the model's 512"),
    ],
)
def test_a_text_that_is_too_short(source, text, calibration, message):
    settings = CalibrationText(**{"path": text, "blocks": CALIBRATED, "length": LENGTH} | calibration)
    with open_source(source) as opened, pytest.raises(InvalidInputError, match=message):
        search_text(opened, settings, SCORED)


def test_a_source_without_tokenizer(tmp_path, text):
    bare = write_tiny(tmp_path / "source", LLAMA | {"num_hidden_layers": 1})
    settings = ConvertSettings(prune="magnitude", sparsity=0.5)
    with pytest.raises(
        InvalidInputError, match=r"got no tokenizer.json, expected one .* or give the sparsity"
    ):
        highest_sparsity(bare, tmp_path / "dst", settings=settings, max_increase=0.05)
