"""A loaded model: tokens, text, ends, limits, statistics, and closing."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import (
    CorruptCheckpointError,
    DoesNotFitError,
    InvalidInputError,
    OptionError,
    StreamError,
)
from endor_jax.generate.sampling import Sampler
from tests.generate.budgets import budgets_of_tiers, plan_at
from tests.tiny_models import END, write_tiny


@pytest.fixture(scope="module")
def model(tiny_checkpoints):
    with endor.load(tiny_checkpoints["llama"], context=290) as loaded:
        yield loaded


def test_greedy_tokens_are_the_likeliest_ones(model):
    prompt = list(b"Once upon a time")
    tokens = [token.id for token in model.generate(prompt, max_tokens=12)]
    assert len(tokens) == 12 or tokens[-1] == END
    logits = model.logits([prompt + tokens])[0, len(prompt) - 1 : -1]
    # Scoring sums in another order: in bfloat16, near ties may turn round.
    chosen = logits[np.arange(len(tokens)), tokens]
    assert (chosen >= logits.max(axis=1) - 0.06).all()
    assert (chosen == logits.max(axis=1)).mean() > 0.7


@pytest.mark.parametrize("seed", range(4))
def test_texts_of_tokens_join_to_the_decoded_whole(model, seed):
    # Random bytes: most characters never finish, some take several tokens.
    sampler = Sampler(temperature=1.5, seed=seed)
    tokens = list(model.generate("Ünïcödé ", max_tokens=60, sampler=sampler))
    assert "".join(token.text for token in tokens) == model.tokenizer.decode([t.id for t in tokens])
    assert any(token.text == "" for token in tokens)


def test_a_seed_repeats_itself(model):
    runs = [
        [t.id for t in model.generate("abc", max_tokens=20, sampler=Sampler(temperature=1.0, seed=seed))]
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_generation_stops_after_an_end_token(model, monkeypatch):
    tokens = [token.id for token in model.generate([1, 2, 3], max_tokens=30)]
    stop = tokens[5]
    tokenizer = model.tokenizer
    monkeypatch.setattr(
        model, "tokenizer", tokenizer.__class__(**(vars(tokenizer) | {"eos_ids": frozenset({stop})}))
    )
    stopped = [token.id for token in model.generate([1, 2, 3], max_tokens=30)]
    assert stopped == tokens[: tokens.index(stop) + 1]
    assert model.statistics.generated_tokens == len(stopped)


def test_a_completion_is_the_tokens_of_a_generation(model):
    prompt = "The quick brown fox"
    completion = model.complete(prompt, max_tokens=10)
    tokens = list(model.generate(prompt, max_tokens=10))
    assert completion.token_ids == [token.id for token in tokens]
    assert completion.text == "".join(token.text for token in tokens)
    assert completion.statistics.prompt_tokens == len(prompt)
    assert completion.statistics.generated_tokens == len(tokens)
    assert completion.statistics.prompt_tokens_per_second > 0
    assert completion.statistics.generation_tokens_per_second > 0
    assert completion.statistics.peak_host_bytes > 2**20
    assert completion.statistics.peak_device_bytes is None


@pytest.mark.parametrize(("prompt", "count"), [(128, 162), (289, 1)])
def test_the_context_may_be_filled(model, prompt, count):
    tokens = list(model.generate([7] * prompt, max_tokens=count))
    assert len(tokens) == count or tokens[-1].id == END


@pytest.mark.parametrize(("prompt", "count"), [(1, 290), (128, 163), (290, 1)])
def test_more_than_the_context_is_refused_at_once(model, prompt, count):
    with pytest.raises(InvalidInputError, match="at most 290 in all"):
        model.generate([7] * prompt, max_tokens=count)


@pytest.mark.parametrize("count", [0, -1])
def test_no_tokens_are_no_generation(model, count):
    with pytest.raises(OptionError, match=f"max_tokens {count}, expected a whole number, at least 1"):
        model.generate([7], max_tokens=count)


def test_an_empty_prompt_and_unknown_ids_are_refused(model):
    with pytest.raises(InvalidInputError, match="token ids: got none"):
        next(model.generate([], max_tokens=1))
    with pytest.raises(InvalidInputError, match="id 320, expected 0 to 319"):
        next(model.generate([320], max_tokens=1))
    assert len(list(model.generate([1], max_tokens=1))) == 1


def test_a_generation_left_midway_harms_no_other(llama):
    budgets = budgets_of_tiers(llama, context=290)["disk"]
    with endor.load(llama, context=290, device_memory=budgets[0], host_memory=budgets[1]) as streamed:
        expected = [token.id for token in streamed.generate([1, 2], max_tokens=8)]
        left = streamed.generate([9] * 140, max_tokens=8)
        next(left)
        next(left)
        left.close()
        assert [token.id for token in streamed.generate([1, 2], max_tokens=8)] == expected
        # Two at a time take turns: each has its own cache.
        pair = [streamed.generate([1, 2], max_tokens=8) for _ in range(2)]
        both = list(zip(*pair, strict=True))
        assert [token.id for token, _ in both] == [token.id for _, token in both] == expected


def test_two_models_at_once(tiny_checkpoints):
    paths = [tiny_checkpoints["llama"], tiny_checkpoints["opt"]]
    alone = []
    for path in paths:
        with endor.load(path, context=290) as model:
            alone.append([token.id for token in model.generate([1, 2, 3], max_tokens=6)])
    with endor.load(paths[0], context=290) as one, endor.load(paths[1], context=290) as two:
        both = list(
            zip(one.generate([1, 2, 3], max_tokens=6), two.generate([1, 2, 3], max_tokens=6), strict=True)
        )
    assert [[token.id for token in tokens] for tokens in zip(*both, strict=True)] == alone


def test_closing_is_final_and_idempotent(llama):
    model = endor.load(llama, context=290)
    tokens = model.generate([1], max_tokens=5)
    next(tokens)
    model.close()
    model.close()
    with pytest.raises(StreamError, match=r"after close\(\)"):
        next(tokens)


def test_what_does_not_fit_comes_with_the_smallest_plan(llama):
    device, host = budgets_of_tiers(llama)["disk"]
    endor.load(llama, device_memory=device, host_memory=host).close()
    for budget in ((device - 1, host), (device, host - 1)):
        with pytest.raises(DoesNotFitError, match=r"(?s)The smallest plan:\n.*KV cache.*token embedding"):
            endor.load(llama, device_memory=budget[0], host_memory=budget[1], depth=2)


@pytest.mark.parametrize("context", [0, -1, 513])
def test_a_context_without_positions_is_refused(llama, context):
    with pytest.raises(InvalidInputError, match="expected 1 to 512"):
        endor.load(llama, context=context)


def test_without_a_tokenizer_prompts_are_ids(tmp_path):
    endor.convert(write_tiny(tmp_path / "source"), tmp_path / "dst")
    with endor.load(tmp_path / "dst") as model:
        tokens = list(model.generate([1, 2], max_tokens=3))
        assert [token.text for token in tokens] == [""] * 3
        with pytest.raises(InvalidInputError, match=r"no tokenizer\.json"):
            model.generate("text", max_tokens=3)


def test_parameter_trees_are_no_model(tmp_path):
    endor.save(tmp_path / "trees", [{"w": np.ones((64, 64), np.float32)}])
    with pytest.raises(InvalidInputError, match=r"run it with endor\.stream"):
        endor.load(tmp_path / "trees")


@pytest.mark.parametrize("tier", ["disk", "device"])
@pytest.mark.parametrize("record", ["layers.2", "embedding", "final"])
def test_damage_is_named(tmp_path, llama, record, tier):
    shutil.copytree(llama, tmp_path / "damaged")
    file = tmp_path / "damaged" / "parts" / f"{record}.0" / "c" / "0"
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    device, host = budgets_of_tiers(llama)[tier]
    with (
        pytest.raises(CorruptCheckpointError, match=rf"parts/{record}\.0"),
        endor.load(tmp_path / "damaged", device_memory=device, host_memory=host) as model,
    ):
        list(model.generate([1], max_tokens=3))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_damaged_file_is_named_and_starts_no_thread(tmp_path, llama, name):
    import threading

    shutil.copytree(llama, tmp_path / "damaged")
    (tmp_path / "damaged" / name).write_text("{}")
    device, host = budgets_of_tiers(llama)["disk"]
    before = threading.active_count()
    with pytest.raises(CorruptCheckpointError, match=name):
        endor.load(tmp_path / "damaged", device_memory=device, host_memory=host)
    assert threading.active_count() == before


def test_statistics_count_one_generation(llama):
    device, host = budgets_of_tiers(llama, context=290)["disk"]
    plan = plan_at(llama, device, host, context=290)
    assert plan.count("disk") > 4
    with endor.load(llama, context=290, device_memory=device, host_memory=host) as model:
        assert model.plan == plan
        for _ in range(2):
            statistics = model.complete([1, 2, 3], max_tokens=5).statistics
            passes = statistics.generated_tokens
            assert statistics.bytes_read == passes * plan.read_bytes_per_pass
            assert statistics.bytes_transferred == passes * plan.transferred_bytes_per_pass


def test_files_that_the_manifest_does_not_list_mean_nothing(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "x")
    (tmp_path / "x" / "chat_template.jinja").write_text("{{ 1 }}")
    (tmp_path / "x" / "generation_config.json").write_text('{"eos_token_id": 5}')
    with endor.load(llama) as listed, endor.load(tmp_path / "x") as model:
        assert model.tokenizer.chat_template is listed.tokenizer.chat_template is None
        assert model.tokenizer.eos_ids == listed.tokenizer.eos_ids


def test_half_a_character_is_no_text(model):
    for give in (model.complete, model.generate, model.encode):
        with pytest.raises(InvalidInputError, match="text: got characters that are none"):
            give("a\ud800")


def test_a_model_that_nobody_closed_ends_without_a_word(llama):
    code = (
        "import sys, endor_jax as endor\n"
        "model = endor.load(sys.argv[1], context=128)\n"
        "print(len(model.complete([1, 2], max_tokens=2).token_ids))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(llama)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
