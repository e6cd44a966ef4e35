"""`endor bench decode`: generations in turn, the same tokens, tokens per second beside transformers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from endor_jax.bench import decode, peers
from endor_jax.bench.decode import DecodeRecord, DecodeSettings, DecodeTiming, Generation, race_generations
from endor_jax.bench.environment import Environment
from endor_jax.cli.main import app
from endor_jax.errors import EndorError, InvalidInputError, MissingDependencyError
from tests.tiny_models import write_tiny


def test_contenders_generate_in_turn_and_the_first_time_is_not_counted():
    order: list[str] = []

    def way(name: str, *ids: int) -> decode.Generate:
        def generate(prompt, tokens: int) -> Iterator[int]:
            order.append(name)
            assert (list(prompt), tokens) == ([7, 8], 3)
            return iter(ids)

        return generate

    ways = {"ours": way("ours", 1, 2, 3), "peer": way("peer", 1, 2, 4)}
    ours, peer = race_generations(ways, [7, 8], settings=DecodeSettings(tokens=3, rounds=2))
    assert order == ["ours", "peer"] * 3
    assert (ours.token_ids, peer.token_ids) == ((1, 2, 3), (1, 2, 4))
    assert all(len(timing.generations) == 2 for timing in (ours, peer))
    assert all(len(each.token_seconds) == 2 for each in ours.generations)


def test_a_text_that_ends_early_or_changes_is_an_error():
    settings = DecodeSettings(tokens=3, rounds=1)
    with pytest.raises(
        InvalidInputError, match="decode, ours: got an end of text after 2 tokens, expected 3"
    ):
        race_generations({"ours": lambda prompt, tokens: iter((1, 2))}, [7], settings=settings)
    counter = itertools.count()
    with pytest.raises(EndorError, match="decode, ours: got other tokens than the first time"):
        race_generations(
            {"ours": lambda prompt, tokens: itertools.islice(counter, tokens)}, [7], settings=settings
        )


def test_the_rate_is_that_of_all_tokens_but_the_first_and_the_ratio_to_the_fastest_peer():
    def timing(name: str, *token_seconds: float, ids: tuple[int, ...] = (1, 2, 3)) -> DecodeTiming:
        return DecodeTiming(name, 9.0, ids, tuple(Generation(5.0, (each, each)) for each in token_seconds))

    timings = timing("ours", 0.1, 0.2, 0.3), timing("a", 1.0), timing("b", 0.5, ids=(1, 5, 3))
    record = DecodeRecord("m", DecodeSettings(), 4, 2, 100, timings, Environment(None, {}, {}))
    assert record.ours.tokens_per_second == pytest.approx(5.0)
    assert record.peer_ratio == pytest.approx(2.5)
    values = json.loads(json.dumps(record.to_json()))
    assert [each["same_tokens_as_ours"] for each in values["timings"]] == [3, 3, 1]
    assert {"commit", "versions", "machine", "settings", "resident_bytes", "threads"} <= values.keys()


def test_without_torch_and_transformers_there_is_nothing_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(peers, "installed", lambda name: False)
    with pytest.raises(MissingDependencyError, match="got no torch and no transformers"):
        decode.measure_decode(tmp_path, tmp_path, settings=DecodeSettings())


@pytest.mark.reference
def test_the_command_compares_with_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(decode, "usable_cpus", lambda: (0,))  # threads of torch and of XLA disturb each other
    model = write_tiny(tmp_path / "model", tokenizer=True)
    record = tmp_path / "record.json"
    options = ["--model", str(model), "--tokens", "4", "--rounds", "1", "--record", str(record)]
    before = torch.get_num_threads()
    done = CliRunner().invoke(app, ["bench", "decode", *options, "-p", "Once"])
    torch.set_num_threads(before)
    assert done.exit_code == 0, done.output
    assert "transformers bfloat16" in done.stdout
    values = json.loads(record.read_text())
    names = [timing["contender"] for timing in values["timings"]]
    assert names == ["ours", "transformers bfloat16", "transformers float32"]
    assert all(len(timing["token_ids"]) == 4 for timing in values["timings"])
    assert values["peer_ratio"] > 0
