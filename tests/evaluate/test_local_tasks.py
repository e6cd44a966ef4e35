"""Tasks in JSONL files: what is read, and which line is refused for what."""

from __future__ import annotations

import json

import pytest

from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.evaluate.local_tasks import read_local_task

QUESTION = {"query": "2 + 2 =", "choices": ["4", "5"], "gold": 0}


def test_questions_and_texts(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(["", json.dumps(QUESTION), " ", json.dumps(QUESTION | {"gold": 1}), ""]))
    task = read_local_task(path)
    assert (task.name, task.kind) == ("sums", "multiple_choice")
    assert task.documents == (QUESTION, QUESTION | {"gold": 1})
    # U+2028 ends a line for str.splitlines, but not for JSONL.
    path.write_text(json.dumps({"text": "Grüße\u2028!"}, ensure_ascii=False))
    assert read_local_task(path).documents == ({"text": "Grüße\u2028!"},)
    assert read_local_task(path).kind == "loglikelihood_rolling"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 of .*: got no JSON"),
        ("[1]", "got a JSON list"),
        ("{}", "got members none"),
        (json.dumps({"text": ""}), "got members 'text'"),
        (json.dumps({"text": 3}), "got members 'text'"),
        (json.dumps(QUESTION | {"text": "x"}), "got members 'choices', 'gold', 'query', 'text'"),
        (json.dumps(QUESTION | {"query": 3}), "a query that is no string"),
        (json.dumps(QUESTION | {"choices": ["4"]}), "choices that are not two strings"),
        (json.dumps(QUESTION | {"choices": ["4", ""]}), "choices that are not two strings"),
        (json.dumps(QUESTION | {"choices": "45"}), "choices that are not two strings"),
        (json.dumps(QUESTION | {"gold": 2}), "gold 2 for 2 choices"),
        (json.dumps(QUESTION | {"gold": -1}), "gold -1 for 2 choices"),
        (json.dumps(QUESTION | {"gold": True}), "gold True for 2 choices"),
        (json.dumps(QUESTION | {"gold": "4"}), "gold '4' for 2 choices"),
        (json.dumps({"text": "x"}), "got lines of both kinds"),
    ],
)
def test_a_line_that_is_no_document(tmp_path, line, message):
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n" + line)
    with pytest.raises(InvalidInputError, match=message):
        read_local_task(path)


def test_files_that_are_no_tasks(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        read_local_task(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(InvalidInputError, match="got no lines"):
        read_local_task(tmp_path / "empty.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff")
    with pytest.raises(InvalidInputError, match="bytes that are no text"):
        read_local_task(tmp_path / "bytes.jsonl")
