"""--tensor-parallel and --pipeline-parallel of the verbs other than generate: what one device says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import endor_jax as endor
from tests.cli.conftest import NEVER_ENDING
from tests.generate.test_session import TEMPLATE
from tests.tiny_models import write_tiny

SPREADS = [("--tensor-parallel", "2"), ("--pipeline-parallel", "2", "--tensor-parallel", "2")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A chat model in one part per record, and in two."""
    base = tmp_path_factory.mktemp("models")
    source = write_tiny(base / "source", NEVER_ENDING, tokenizer=True)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    for shards in (1, 2):
        endor.convert(source, base / f"{shards}.endor", shards=shards)
    return base / "1.endor", base / "2.endor"


@pytest.mark.parametrize("spread", SPREADS)
def test_chat(run_command, models, spread):
    said = "Hello.\nWho are you?\n"
    options = ("--max-tokens", "6", "--json")
    alone, together = (
        [json.loads(line)["token_ids"] for line in done.stdout.splitlines()]
        for done in (
            run_command("chat", path, *options, *more, stdin=said)
            for path, more in zip(models, ((), spread), strict=True)
        )
    )
    assert alone == together
    assert len(alone) == 2


@pytest.mark.parametrize("spread", SPREADS)
def test_perplexity(run_command, models, tmp_path, spread):
    text = tmp_path / "text.txt"
    text.write_text("It was a bright cold day in April. " * 20)
    options = ("--data", text, "--sequence-length", "64", "--json")
    alone, together = (
        json.loads(run_command("perplexity", path, *options, *more).stdout)
        for path, more in zip(models, ((), spread), strict=True)
    )
    assert together["tokens"] == alone["tokens"]
    assert together["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-3)


def test_a_checkpoint_that_is_not_cut_is_refused(run_command, models):
    refused = run_command("chat", models[0], "--tensor-parallel", "2", stdin="Hello.\n")
    assert refused.code == 1
    assert f"endor reshard {models[0]} OTHER --shards 2" in refused.stderr
