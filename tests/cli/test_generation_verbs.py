"""generate's batch files and sampling options, chat and perplexity, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import endor_jax as endor
from endor_jax.cli.generate import statistics_values
from endor_jax.evaluate.perplexity import perplexity
from endor_jax.generate.sampling import Sampler
from tests.cli.conftest import NEVER_ENDING
from tests.generate.test_session import TEMPLATE
from tests.tiny_models import write_tiny

pytestmark = pytest.mark.usefixtures("compiled_quickly")
LINES = [
    {"prompt": "Hello"},
    {"id": "mine", "messages": [{"role": "user", "content": "Grüße"}]},
    {"prompt": "x" * 150, "id": 7},
]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> Path:
    """float32 with a chat template: batches and single prompts agree in every token."""
    base = tmp_path_factory.mktemp("chat")
    source = write_tiny(base / "source", NEVER_ENDING, tokenizer=True)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    endor.convert(source, base / "dst")
    return base / "dst"


@pytest.fixture
def batch_file(tmp_path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in LINES) + "\n")
    return path


def expected_texts(path: Path, **settings) -> list[str]:
    with endor.load(path) as model:
        prompts = [
            model.chat_ids(line.get("messages") or [{"role": "user", "content": line["prompt"]}])
            for line in LINES
        ]
        return [model.complete(prompt, max_tokens=9, **settings).text for prompt in prompts]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_batch_file_is_answered_line_by_line(run_command, chat_model, batch_file, size):
    done = run_command(
        "generate", chat_model, "--batch-file", batch_file, "--batch-size", size, "--max-tokens", "9"
    )
    assert done.code == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [1, "mine", 7]
    assert [answer["text"] for answer in answers] == expected_texts(chat_model)
    assert all(set(answer) == {"id", "text", "token_ids", "finish_reason"} for answer in answers)
    assert [len(answer["token_ids"]) for answer in answers] == [9, 9, 9]
    assert {answer["finish_reason"] for answer in answers} == {"length"}


def test_a_batch_from_stdin_as_one_json_object(run_command, chat_model, batch_file):
    done = run_command(
        *("generate", chat_model, "--batch-file", "-", "--max-tokens", "9", "--json", "-q"),
        stdin=batch_file.read_text(),
    )
    result = json.loads(done.stdout)
    assert [answer["text"] for answer in result["completions"]] == expected_texts(chat_model)
    assert result["prompt_tokens"] > 150
    assert (result["sequences"], result["micro_batch"]) == (3, 3)
    assert result["plan"]["fixed_device_bytes"]["KV cache"] > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no lines"),
        ("{", "line 1: got no JSON"),
        ('{"prompt": "a"}\n[1]', "line 2: got neither or both"),
        ('{"prompt": "a", "messages": []}', "line 1: got neither or both"),
        ('{"prompt": "a", "max_tokens": 3}', "a member 'max_tokens'"),
        ('{"prompt": 3}', "a prompt that is int"),
        ('{"messages": []}', "messages that are no list"),
        ('{"messages": [3]}', "messages that are no list"),
        ("\ud800", "no JSON"),
        (r'{"prompt": "\ud800"}', "text: got characters that are none"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(run_command, chat_model, tmp_path, text, message):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(text.encode(errors="surrogatepass"))
    done = run_command("generate", chat_model, "--batch-file", path)
    assert done.code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--batch-file", "nowhere"), 1, "no such file"),
        (("--batch-file", "x", "-p", "y"), 2, "--prompt and --batch-file"),
        ((), 2, "neither --prompt nor --batch-file"),
        (("-p", "y", "--top-k", "-1"), 2, "top_k -1"),
        (("-p", "y", "--min-p", "1.5"), 2, "min_p 1.5"),
        (("-p", "y", "--repetition-penalty", "0"), 2, "repetition_penalty 0.0"),
        (("-p", "y", "--stop", ""), 2, "an empty string"),
    ],
)
def test_wrong_options_are_one_line(run_command, chat_model, arguments, code, message):
    done = run_command("generate", chat_model, *arguments)
    assert done.code == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_sampling_option_arrives(run_command, chat_model):
    settings = {"temp": 1.3, "top-p": 0.95, "top-k": 40, "min-p": 0.01, "repetition-penalty": 1.2, "seed": 5}
    options = [f"--{name}={value}" for name, value in settings.items()]
    done = run_command("generate", chat_model, "-p", "Hello", "--max-tokens", "20", "--json", "-q", *options)
    sampler = Sampler(temperature=1.3, top_p=0.95, top_k=40, min_p=0.01, repetition_penalty=1.2, seed=5)
    with endor.load(chat_model) as model:
        ids = model.chat_ids([{"role": "user", "content": "Hello"}])
        expected = model.complete(ids, max_tokens=20, sampler=sampler).token_ids
    assert json.loads(done.stdout)["token_ids"] == expected


def test_stop_strings_end_the_text(run_command, chat_model):
    arguments = ("generate", chat_model, "-p", "Hello", "--max-tokens", "30")
    whole = run_command(*arguments).stdout.rstrip("\n")
    stop = whole[4:7]
    assert run_command(*arguments, "--stop", stop).stdout == whole.split(stop)[0] + "\n"
    assert run_command(*arguments, "--stop", "never", "--stop", stop).stdout == whole.split(stop)[0] + "\n"


def test_chat_goes_on_with_what_was_said(run_command, chat_model):
    done = run_command(
        "chat", chat_model, "--max-tokens", "8", stdin="Hello\n\nAnd?\n/reset\nAnd?\n/exit\nno\n"
    )
    assert done.code == 0, done.stderr
    with endor.load(chat_model) as model:
        session = model.session()
        said = [
            "".join(token.text for token in session.reply(text, max_tokens=8)) for text in ("Hello", "And?")
        ]
        fresh = "".join(token.text for token in model.session().reply("And?", max_tokens=8))
    assert done.stdout == "\n".join([*said, fresh]) + "\n"
    assert said[1] != fresh


def test_chat_as_json_counts_what_was_cached(run_command, chat_model):
    done = run_command(
        *("chat", chat_model, "--max-tokens", "8", "--system", "Be brief.", "--json", "-q"),
        stdin="Hello\nAnd?\n",
    )
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] >= first["prompt_tokens"]
    with endor.load(chat_model) as model:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        assert model.complete(model.chat_ids(messages), max_tokens=8).text == first["text"]


def test_a_conversation_that_is_full_says_so_and_goes_on_after_reset(run_command, chat_model):
    arguments = ("chat", chat_model, "--max-tokens", "8", "--context", "128", "--json")
    done = run_command(*arguments, stdin="Hello\n" + "x" * 200 + "\n/reset\nHello\n")
    assert done.code == 0
    assert "at most 128 in all" in done.stderr
    assert "/reset begins anew" in done.stderr
    first, refused, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["token_ids"] == second["token_ids"]
    assert first["finish_reason"] == "length"
    assert "at most 128 in all" in refused["error"]
    quiet = run_command(*arguments, "-q", stdin="Hello\n" + "x" * 200 + "\n")
    assert "at most 128 in all" in quiet.stderr


def test_chat_needs_a_template(run_command, checkpoint):
    done = run_command("chat", checkpoint, stdin="Hello\n")
    assert done.code == 1
    assert "chat template: got a tokenizer without one" in done.stderr


def test_perplexity(run_command, checkpoint, tmp_path):
    text = "".join(chr(c) for c in np.random.default_rng(0).integers(32, 126, 700))
    (tmp_path / "text").write_text(text)
    arguments = ("perplexity", checkpoint, "--data", tmp_path / "text", "--sequence-length", "64")
    result = json.loads(run_command(*arguments, "--json").stdout)
    with endor.load(checkpoint, context=64) as model:
        expected = perplexity(model, model.encode(text), sequence_length=64)
    assert result == {
        "perplexity": pytest.approx(expected.value),
        "standard_error": pytest.approx(expected.standard_error),
        "tokens": 630,
        "sequence_length": 64,
        "data": str(tmp_path / "text"),
        "blocks": None,
        "seed": None,
    }
    words = run_command(*arguments).stdout
    value = f"perplexity {expected.value:.3f} ± {expected.standard_error:.3f}"
    assert words == f"{value} (630 tokens: all blocks, 64 tokens each, of {tmp_path / 'text'})\n"


def test_one_pass_over_the_layers_for_all_blocks_of_a_batch(checkpoint):
    ids = np.random.default_rng(0).integers(0, 256, 640).tolist()
    read = []
    for batch in (1, 5):
        with endor.load(checkpoint, context=128, batch=batch) as model:
            before = model._pipeline.runner.executor.bytes_transferred
            perplexity(model, ids, sequence_length=128)
            per_pass = model.plan.transferred_bytes_per_pass
            read.append((model._pipeline.runner.executor.bytes_transferred - before, per_pass))
    assert [moved for moved, _ in read] == [5 * read[0][1], read[1][1]]


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (None, 1, "no such file"),
        (b"\xff\xfe", 1, "bytes that are no text"),
        (b"short", 1, "at least one block"),
    ],
)
def test_perplexity_of_no_text(run_command, checkpoint, tmp_path, data, code, message):
    if data is not None:
        (tmp_path / "text").write_bytes(data)
    done = run_command("perplexity", checkpoint, "--data", tmp_path / "text", "--sequence-length", "64")
    assert done.code == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_statistics_as_json_have_every_field(chat_model):
    with endor.load(chat_model) as model:
        values = statistics_values(model.complete("a", max_tokens=4).statistics)
    assert values["generation_tokens_per_second"] > 0
