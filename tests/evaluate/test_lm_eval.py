"""lm-evaluation-harness on our models: its figures are those counted by hand from our likelihoods."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="pip install 'endor_jax[eval]'")

import endor_jax as endor
from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.evaluate.lm_eval import evaluate_tasks
from endor_jax.evaluate.requests import generations, loglikelihoods, text_loglikelihoods
from tests.tiny_models import write_tiny

WORDS = ["red", "green", "blue and long", "x"]
TEXTS = ["The first text.", "Another text, with more words in it than fit: " + "la " * 40]
EXACT = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_gen_toks: 5, until: ["never"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base = tmp_path_factory.mktemp("lm_eval")
    endor.convert(write_tiny(base / "source", tokenizer=True), base / "dst")
    with endor.load(base / "dst", context=64, batch=4) as loaded:
        yield loaded


def write_lines(path: Path, documents: list[dict]) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.fixture
def questions(tmp_path) -> Path:
    random = np.random.default_rng(0)
    documents = [
        {"query": f"Question {i}: which?", "choices": WORDS[: 2 + i % 3], "gold": int(random.integers(0, 2))}
        for i in range(12)
    ]
    return write_lines(tmp_path / "colours.jsonl", documents)


def test_accuracy_by_hand_is_accuracy_as_the_harness_counts(model, questions):
    result = evaluate_tasks(model, [questions])
    right, right_by_letter = [], []
    for document in map(json.loads, questions.read_text().splitlines()):
        pairs = [(document["query"], f" {choice}") for choice in document["choices"]]
        values = [value for value, _ in loglikelihoods(model, pairs).values]
        lengths = [len(choice) for choice in document["choices"]]
        right.append(np.argmax(values) == document["gold"])
        right_by_letter.append(np.argmax(np.divide(values, lengths)) == document["gold"])
    (task,) = result.tasks
    assert (task.name, task.documents, result.shortened) == ("colours", 12, 0)
    assert dict(task.metrics) == {"acc": np.mean(right), "acc_norm": np.mean(right_by_letter)}
    assert 0 < task.metrics["acc"] < 1
    assert task.standard_errors["acc"] == pytest.approx(np.std(right, ddof=1) / 12**0.5)


def test_perplexity_by_hand_is_perplexity_as_the_harness_counts(model, tmp_path):
    path = write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    (task,) = evaluate_tasks(model, [str(path)]).tasks
    total = sum(text_loglikelihoods(model, TEXTS).values)
    length = sum(len(text.encode()) for text in TEXTS)
    assert task.metrics["byte_perplexity"] == pytest.approx(np.exp(-total / length))
    assert task.metrics["bits_per_byte"] == pytest.approx(-total / length / np.log(2))
    words = sum(len(re.split(r"\s+", text)) for text in TEXTS)
    assert task.metrics["word_perplexity"] == pytest.approx(np.exp(-total / words))
    assert task.documents == 2


def test_tasks_of_the_harness_in_yaml(model, tmp_path):
    prompts = ["Hello", "Good morning"]
    said = generations(model, [(prompt, {"max_gen_toks": 5}) for prompt in prompts]).values
    documents = [{"text": prompts[0], "answer": said[0]}, {"text": prompts[1], "answer": "something else"}]
    data = write_lines(tmp_path / "said.jsonl", documents)
    (tmp_path / "tasks").mkdir()
    for name in ("first", "second"):
        text = EXACT.format(name=name, data=data, cache=tmp_path / "cache")
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
    (one,) = evaluate_tasks(model, [tmp_path / "tasks" / "first.yaml"]).tasks
    assert (one.name, one.metrics["exact_match"]) == ("first", 0.5)
    both = evaluate_tasks(model, [tmp_path / "tasks"])
    assert [(task.name, task.metrics["exact_match"]) for task in both.tasks] == [
        ("first", 0.5),
        ("second", 0.5),
    ]


def test_several_files_progress_and_what_was_shortened(model, questions, tmp_path):
    long = {"query": "word " * 30, "choices": ["a", "b"], "gold": 1}
    other = write_lines(tmp_path / "long.jsonl", [long])
    before, seen = dict(os.environ), []
    result = evaluate_tasks(model, [questions, other], progress=lambda *each: seen.append(each))
    assert [task.name for task in result.tasks] == ["colours", "long"]
    assert result.shortened == 2
    assert seen[0] == ("scoring choices", 0, 38)
    assert dict(os.environ) == before


def test_files_that_are_no_tasks(model, questions, tmp_path):
    with pytest.raises(NotFoundError, match=r"none.jsonl: got no such file"):
        evaluate_tasks(model, [tmp_path / "none.jsonl"])
    with pytest.raises(NotFoundError, match="hellaswag: got no such file"):
        evaluate_tasks(model, ["hellaswag"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="a directory without a task in YAML"):
        evaluate_tasks(model, [tmp_path / "empty"])
    (tmp_path / "bad.yaml").write_text("task: bad\noutput_type: none\n")
    with pytest.raises(InvalidInputError, match=r"bad.yaml: got ValueError: Got invalid output_type"):
        evaluate_tasks(model, [tmp_path / "bad.yaml"])
    with pytest.raises(InvalidInputError, match="another task 'colours'"):
        evaluate_tasks(model, [questions, questions])
