"""Tasks of EleutherAI's lm-evaluation-harness on our models (github.com/EleutherAI/lm-evaluation-harness).

It builds the requests and counts the answers; `requests` gives the answers. It is optional and imported when
a function here is called.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from endor_jax.errors import InvalidInputError, MissingDependencyError, NotFoundError
from endor_jax.evaluate.local_tasks import LocalTask, read_local_task
from endor_jax.evaluate.requests import Answers, generations, loglikelihoods, text_loglikelihoods
from endor_jax.generate.model import Model

BOOTSTRAP_DRAWS = 1000
"""For the standard errors of metrics that have no formula for theirs."""
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class TaskResult:
    """documents: how many were scored. metrics: by name; standard_errors: of those that have one."""

    name: str
    documents: int
    metrics: Mapping[str, float]
    standard_errors: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """tasks: in the order in which they were asked for. shortened: requests whose beginning did not fit the
    model's context. version: of lm-evaluation-harness."""

    tasks: tuple[TaskResult, ...]
    shortened: int
    version: str


def check_installed() -> None:
    """Raises MissingDependencyError without lm-evaluation-harness."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingDependencyError(
            "eval",
            got="no lm_eval",
            expected="lm-evaluation-harness",
            fix="pip install 'endor_jax[eval]'",
        )


def evaluate_tasks(
    model: Model, paths: Sequence[str | Path], *, progress: Callable[[str, int, int], None] | None = None
) -> Evaluation:
    """Runs tasks from files: JSONL (`local_tasks`), a task of lm-evaluation-harness in YAML, or a directory
    of those. What YAML files name, data on the network and Python functions too, is used as they say.

    progress: called with (what, requests done, in all). Raises MissingDependencyError, NotFoundError for a
    path there is not, InvalidInputError for a file that is no task, and what `requests` raises.
    """
    check_installed()
    evaluator = importlib.import_module("lm_eval.evaluator")
    tasks = load_tasks(paths)
    served = _serve(model, progress)
    with _one_process():
        found = evaluator.evaluate(
            lm=served, task_dict=tasks, bootstrap_iters=BOOTSTRAP_DRAWS, log_samples=False
        )
    results = tuple(
        _result(name, found["results"][name], found["n-samples"][name]["effective"])
        for name in tasks["tasks"]
    )
    return Evaluation(results, served.shortened, importlib.metadata.version("lm_eval"))


def load_tasks(paths: Sequence[str | Path]) -> dict[str, Any]:
    """The tasks in some files and directories, as the harness takes them. Raises as `evaluate_tasks` does."""
    manager = importlib.import_module("lm_eval.tasks").TaskManager
    tasks: dict[str, Any] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise NotFoundError(
                f"task {path}", got="no such file", expected="a JSONL or YAML file", fix="check the path"
            )
        if path.is_file() and path.suffix not in YAML:
            task = read_local_task(path)
            found = {task.name: _local_task(task)}
        else:
            found = _harness_tasks(path, manager)
        if twice := sorted(found.keys() & tasks.keys()):
            raise _no_task(path, f"another task {twice[0]!r}")
        tasks |= found
    return {"tasks": tasks}


def _harness_tasks(path: Path, manager: Any) -> dict[str, Any]:
    """The tasks in a YAML file, or in all of a directory, by name."""
    try:
        directory = path if path.is_dir() else path.parent
        known = manager(include_path=str(directory), include_defaults=False)
        found = known.load(known.all_subtasks if path.is_dir() else [str(path)])["tasks"]
    except Exception as error:  # whatever somebody's task runs into: its YAML, its data, its functions
        raise _no_task(path, f"{type(error).__name__}: {error}") from error
    if not found:
        raise _no_task(path, "a directory without a task in YAML")
    return found


def _local_task(task: LocalTask) -> Any:
    """A task of the harness over documents that are there already."""
    base = importlib.import_module("lm_eval.api.task").ConfigurableTask
    dataset = importlib.import_module("datasets").Dataset

    def download(self: Any, *_: object, **__: object) -> None:
        self.dataset = {"test": dataset.from_list(list(task.documents))}

    return type("LocalTask", (base,), {"download": download})(config=task.config)


def _serve(model: Model, progress: Callable[[str, int, int], None] | None) -> Any:
    """The model as the harness wants it, which counts what was shortened."""
    base = importlib.import_module("lm_eval.api.model").LM

    class Served(base):
        shortened = 0

        def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
            return self._answers(loglikelihoods, [each.args for each in requests], "scoring choices")

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[Any]:
            return self._answers(text_loglikelihoods, [each.args[0] for each in requests], "scoring texts")

        def generate_until(self, requests: Sequence[Any]) -> list[Any]:
            return self._answers(generations, [each.args for each in requests], "generating")

        def _answers(self, function: Callable[..., Answers[Any]], asked: list[Any], what: str) -> list[Any]:
            part = None if progress is None else partial(progress, what)
            answers = function(model, asked, progress=part)
            self.shortened += answers.shortened
            return answers.values

    return Served()


def _result(name: str, found: Mapping[str, Any], documents: int) -> TaskResult:
    """The figures of a task; the harness has them as "acc,none" and "acc_stderr,none"."""
    figures = {key: value for key, value in found.items() if "," in key and isinstance(value, float | int)}
    metrics, errors = {}, {}
    for key, value in figures.items():
        metric, _, kept = key.partition(",")
        label = metric.removesuffix("_stderr") + ("" if kept == "none" else f", {kept}")
        (errors if metric.endswith("_stderr") else metrics)[label] = float(value)
    return TaskResult(name, documents, metrics, errors)


@contextmanager
def _one_process() -> Iterator[None]:
    """Bootstrapping forks otherwise, which a process with JAX's threads must not."""
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _no_task(path: str | Path, got: str) -> InvalidInputError:
    return InvalidInputError(
        f"task {path}",
        got=got,
        expected="tasks of lm-evaluation-harness",
        fix="mend the file; the names of tasks that the harness brings are not taken, only files",
    )
