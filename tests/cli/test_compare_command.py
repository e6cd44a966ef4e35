"""compare, and perplexity of chosen blocks, as typed: the figures of the functions, every key, the plot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.bench.plot_compare import plot_comparison
from endor_jax.cli.console import Output
from endor_jax.evaluate import compare as compare_module
from endor_jax.evaluate.compare import compare
from endor_jax.evaluate.divergence import TokenFigures
from endor_jax.evaluate.perplexity import perplexity_of_blocks
from endor_jax.generate.model import Model
from endor_jax.text import load_tokenizer
from endor_jax.text.blocks import shuffled_blocks
from endor_jax.text.corpus import read_corpus

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="no matplotlib (pip install 'endor_jax[plot]')"
)
SIDE = {
    *("path", "perplexity", "standard_error", "stored_bytes"),
    *("sparsity", "bytes_per_weight", "tokens_per_second"),
}


@pytest.fixture(scope="module")
def dense(source, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "dense.endor"
    endor.convert(source, path, dtype="bfloat16", prune="none")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text("".join(chr(c) for c in np.random.default_rng(0).integers(32, 126, 1000)))
    return path


def blocks_of(checkpoint: Path, text: Path, *, first: int, count: int, seed: int) -> np.ndarray:
    ids = load_tokenizer(checkpoint).encode(read_corpus(str(text)))
    return shuffled_blocks(ids, 64, seed=seed, first=first, count=count)


def test_compare_as_json(run_command, dense, checkpoint, text):
    options = ("--data", text, "--sequence-length", "64", "--blocks", "3:7", "--seed", "5")
    done = run_command("compare", dense, checkpoint, *options, "--json", "-q", "--generated-tokens", "4")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    blocks = blocks_of(dense, text, first=3, count=4, seed=5)
    expected = compare(dense, checkpoint, blocks, generated_tokens=0)
    for name, side in (("a", expected.a), ("b", expected.b)):
        assert set(result[name]) == SIDE
        assert result[name]["perplexity"] == pytest.approx(side.perplexity.value)
        assert result[name]["standard_error"] == pytest.approx(side.perplexity.standard_error)
        assert result[name]["bytes_per_weight"] == side.bytes_per_weight
        assert result[name]["tokens_per_second"] > 0
    assert (result["a"]["path"], result["b"]["path"]) == (str(dense), str(checkpoint))
    info = json.loads(run_command("info", checkpoint, "--json").stdout)
    assert result["b"]["stored_bytes"] == info["stored_bytes"]
    assert set(result["divergence"]) == {"mean", "standard_error", "median", "percentile_99"}
    assert result["divergence"]["mean"] == pytest.approx(expected.divergence.mean)
    assert result["agreement"] == expected.agreement
    assert result["ratio"] == pytest.approx(expected.ratio)
    assert result["ratio_standard_error"] == pytest.approx(expected.ratio_standard_error)
    chosen = {
        "tokens": 252,
        "data": str(text),
        "sequence_length": 64,
        "blocks": [3, 7],
        "seed": 5,
        "plot": None,
    }
    assert {key: result[key] for key in chosen} == chosen


@needs_matplotlib
def test_compare_in_words_and_as_a_picture(run_command, dense, checkpoint, text, tmp_path):
    picture = tmp_path / "new" / "compare.svg"
    arguments = ("compare", dense, checkpoint, "--data", text, "--sequence-length", "64", "--blocks", "0:4")
    done = run_command(*arguments, "--plot", picture, "--generated-tokens", "0")
    assert done.code == 0, done.stderr
    rows = ("dense.endor", "model.endor", "perplexity", "files", "bytes per weight", "zeros in the layers")
    for expected in (*rows, "KL divergence per token", "the same likeliest token", "252 tokens: blocks 0:4"):
        assert expected in done.stdout
    assert "tokens per second" not in done.stdout
    drawn = picture.read_text()
    assert drawn.startswith("<?xml")
    assert drawn.rstrip().endswith("</svg>")


@needs_matplotlib
def test_a_picture_of_a_model_beside_itself(dense, text, tmp_path):
    blocks = blocks_of(dense, text, first=0, count=1, seed=0)[:, :3]
    result = compare(dense, dense, blocks, generated_tokens=0)
    plot_comparison(result, tmp_path / "same.png", names=("$dense_", "a & b"))
    assert (tmp_path / "same.png").stat().st_size > 1000


def test_plots_and_models_are_refused_before_anything_is_scored(run_command, dense, text, tmp_path):
    done = run_command("compare", dense, dense, "--data", text, "--plot", tmp_path / "a.txt")
    assert done.code in (1, 2)  # without matplotlib another reason
    assert "plot: got" in done.stderr
    done = run_command(
        "compare", dense, tmp_path / "none", "--data", text, "--sequence-length", "64", "--blocks", ":2"
    )
    assert (done.code, done.stderr.count("\n")) == (1, 1)
    assert "no such directory" in done.stderr


@pytest.mark.parametrize("blocks", ["3:7", "8:", ":2"])
def test_perplexity_of_chosen_blocks(run_command, checkpoint, text, blocks):
    arguments = ("perplexity", checkpoint, "--data", text, "--sequence-length", "64", "--blocks", blocks)
    result = json.loads(run_command(*arguments, "--json").stdout)
    first, last = (int(each or default) for each, default in zip(blocks.split(":"), (0, 15), strict=True))
    with endor.load(checkpoint, context=64) as model:
        chosen = blocks_of(checkpoint, text, first=first, count=last - first, seed=0)
        expected = perplexity_of_blocks(model, chosen)
    assert result["perplexity"] == pytest.approx(expected.value)
    assert result["tokens"] == 63 * (last - first)
    assert (result["blocks"], result["seed"]) == ([first, last if blocks[-1] != ":" else None], 0)


def test_figures_of_a_broken_model_are_null(run_command, dense, checkpoint, text, monkeypatch):
    def losses(self, blocks):
        return [np.full(len(block) - 1, 1000, np.float32) for block in blocks]

    def figures(a, b, blocks, *, progress):
        shape = len(blocks), blocks.shape[1] - 1
        lost, none = np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32)
        return TokenFigures(lost, none, np.full(shape, np.inf, np.float32), np.zeros(shape, bool))

    monkeypatch.setattr(Model, "losses", losses)
    monkeypatch.setattr(compare_module, "compare_tokens", figures)
    options = ("--data", text, "--sequence-length", "64", "--blocks", "3:5", "--json")
    result = strictly(run_command("perplexity", checkpoint, *options).stdout)
    assert (result["perplexity"], result["standard_error"], result["tokens"]) == (None, None, 126)
    done = run_command("compare", dense, checkpoint, *options, "--generated-tokens", "0")
    result = strictly(done.stdout)
    assert (result["ratio"], result["b"]["perplexity"], result["a"]["perplexity"]) == (None, None, 1.0)
    assert set(result["divergence"].values()) == {None}


def test_no_verb_prints_numbers_that_json_has_not(capsys):
    Output(as_json=True, quiet=True, verbose=False).json({"tasks": [{"one": (float("nan"), 1.5)}]})
    assert strictly(capsys.readouterr().out) == {"tasks": [{"one": [None, 1.5]}]}


def strictly(text: str) -> dict:
    """JSON without what only Python reads as JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_without_a_file_the_text_that_is_always_there(run_command, checkpoint):
    done = run_command(
        "perplexity", checkpoint, "--blocks", "64:65", "--sequence-length", "8", "--json", "-q"
    )
    result = json.loads(done.stdout)
    assert (result["data"], result["tokens"]) == ("pydoc_data.topics", 7)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--blocks", "7:3"), 2, "--blocks: got 7:3, expected FIRST:LAST"),
        (("--blocks", "3:3"), 2, "expected FIRST:LAST"),
        (("--blocks", ":0"), 2, "expected FIRST:LAST"),
        (("--blocks", "-1:3"), 2, "expected FIRST:LAST"),
        (("--blocks", "3"), 2, "expected FIRST:LAST"),
        (("--seed", "3"), 2, "--seed: got 3, but no --blocks"),
        (("--blocks", "3:99"), 1, "15 blocks of 64, expected blocks 3 to 98"),
    ],
)
def test_blocks_there_are_not(run_command, checkpoint, text, options, code, message):
    done = run_command("perplexity", checkpoint, "--data", text, "--sequence-length", "64", *options)
    assert done.code == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_checkpoint_without_a_tokenizer_has_no_text(run_command, text, tmp_path):
    from tests.tiny_models import write_tiny

    endor.convert(write_tiny(tmp_path / "source"), tmp_path / "dst", prune="none")
    for arguments in (("compare", tmp_path / "dst", tmp_path / "dst"), ("perplexity", tmp_path / "dst")):
        done = run_command(*arguments, "--data", text)
        assert (done.code, done.stderr.count("\n")) == (1, 1)
        assert "tokenizer.json: got no such file" in done.stderr
