"""eval as typed: figures as JSON and in words, and one line where the harness is not installed."""

from __future__ import annotations

import importlib.util
import json

import pytest

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="no lm_eval (pip install 'endor_jax[eval]')"
)


@pytest.fixture
def task(tmp_path):
    document = {"query": "The sky is", "choices": ["blue", "green"], "gold": 0}
    path = tmp_path / "sky.jsonl"
    path.write_text("\n".join(json.dumps(document | {"gold": gold}) for gold in (0, 1, 0)))
    return path


@needs_harness
def test_eval_as_json_and_in_words(run_command, start_command, checkpoint, task):
    done = start_command("eval", checkpoint, "--tasks", task, "--json", "-q", "--context", "64")
    assert (done.code, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert set(result) == {"tasks", "shortened", "lm_eval", "context"}
    assert set(result["tasks"]["sky"]) == {"documents", "metrics", "standard_errors"}
    assert result["tasks"]["sky"]["documents"] == 3
    assert round(3 * result["tasks"]["sky"]["metrics"]["acc"], 6) in (1, 2)  # it says one and the same
    assert (result["shortened"], result["context"]) == (0, 64)
    words = run_command("eval", checkpoint, "--tasks", f"{task},", "--context", "8")
    assert "acc_norm" in words.stdout
    assert "sky" in words.stdout
    assert "6 requests were longer than 8 tokens" in words.stderr


@needs_harness
def test_a_task_that_is_not_there(run_command, checkpoint, tmp_path):
    done = run_command("eval", checkpoint, "--tasks", tmp_path / "none.jsonl", "-q")
    assert done.code == 1
    assert "none.jsonl: got no such file" in done.stderr


def test_without_the_harness_the_command_that_installs_it_is_named(
    run_command, checkpoint, task, monkeypatch
):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else found(name, *a)
    )
    done = run_command("eval", checkpoint, "--tasks", task)
    assert (done.code, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'endor_jax[eval]'" in done.stderr
