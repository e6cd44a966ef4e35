"""Tasks for lm-evaluation-harness from a JSONL file: questions with choices, or texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from endor_jax.errors import InvalidInputError
from endor_jax.text.corpus import read_utf8

Kind = Literal["multiple_choice", "loglikelihood_rolling"]
"""What lm-evaluation-harness calls a question with choices, and a text to be predicted."""
METRICS: dict[Kind, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}


@dataclass(frozen=True)
class LocalTask:
    """name: of the file, without its ending. documents: at least one, all of one kind."""

    name: str
    kind: Kind
    documents: tuple[dict[str, Any], ...]

    @property
    def config(self) -> dict[str, Any]:
        """What lm-evaluation-harness calls the configuration of a task; the documents are not in it.

        A choice follows its query behind a space, which is the harness's default.
        """
        texts: dict[str, Any] = {"doc_to_text": "", "doc_to_target": lambda document: document["text"]}
        if self.kind == "multiple_choice":
            texts = {
                "doc_to_text": lambda document: document["query"],
                "doc_to_choice": lambda document: document["choices"],
                "doc_to_target": lambda document: document["gold"],
            }
        better = self.kind == "multiple_choice"
        return {
            "task": self.name,
            "output_type": self.kind,
            "test_split": "test",
            "metric_list": [
                {"metric": metric, "higher_is_better": better} | _aggregation(metric)
                for metric in METRICS[self.kind]
            ],
            **texts,
        }


def read_local_task(path: Path) -> LocalTask:
    """The task in a JSONL file: every line {"query", "choices", "gold"}, or every line {"text"}.

    gold: the place of the right choice, from 0. Raises NotFoundError, and InvalidInputError for a line that
    is neither, for lines of both kinds, and for a file without any.
    """
    lines = read_utf8(path, what="task", expected="a JSONL or YAML file").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    documents = [_document(f"line {number} of {path}", line) for number, line in numbered]
    kinds: set[Kind] = {kind for kind, _ in documents}
    if len(kinds) != 1:
        raise InvalidInputError(
            f"task {path}",
            got="lines of both kinds" if kinds else "no lines",
            expected="questions, or texts",
            fix="put each kind into a file of its own" if kinds else "add some",
        )
    return LocalTask(path.stem, kinds.pop(), tuple(document for _, document in documents))


def _document(where: str, line: str) -> tuple[Kind, dict[str, Any]]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _wrong(where, f"no JSON ({error})") from error
    if not isinstance(value, dict):
        raise _wrong(where, f"a JSON {type(value).__name__}")
    if set(value) == {"text"} and isinstance(value["text"], str) and value["text"]:
        return "loglikelihood_rolling", value
    if set(value) != {"query", "choices", "gold"}:
        raise _wrong(where, f"members {', '.join(map(repr, sorted(value))) or 'none'}")
    choices, gold = value["choices"], value["gold"]
    if not isinstance(value["query"], str):
        raise _wrong(where, "a query that is no string")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise _wrong(where, "choices that are not two strings or more")
    if type(gold) is not int or not 0 <= gold < len(choices):
        raise _wrong(where, f"gold {gold!r} for {len(choices)} choices")
    return "multiple_choice", value


def _aggregation(metric: str) -> dict[str, str]:
    if metric == "bits_per_byte":
        return {"aggregation": metric}
    return {"aggregation": "weighted_perplexity" if metric.endswith("perplexity") else "mean"}


def _wrong(where: str, got: str) -> InvalidInputError:
    return InvalidInputError(
        where,
        got=got,
        expected='{"query": ..., "choices": [..., ...], "gold": 0} or {"text": ...}',
        fix="mend the line",
    )
