"""`endor eval`: a checkpoint on tasks of lm-evaluation-harness, from files."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endor_jax.cli.console import (
    CacheDir,
    CacheSize,
    Checkpoint,
    DeviceMemory,
    HostMemory,
    Json,
    Output,
    Quiet,
    Verbose,
    cache_of,
)
from endor_jax.cli.devices import PipelineParallel, TensorParallel, mesh_of
from endor_jax.errors import OptionError

if TYPE_CHECKING:
    from endor_jax.evaluate.lm_eval import Evaluation


def command(
    checkpoint: Checkpoint,
    tasks: Annotated[
        str,
        typer.Option(
            help='Files, with commas between: JSONL with {"query", "choices", "gold"} or {"text"} a line, '
            "YAML of lm-evaluation-harness, or a directory of that."
        ),
    ],
    context: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of a request. Default: the model's, at most 2048.")
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(min=1, help="Requests that pass through the layers together: memory for fewer reads."),
    ] = 4,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    cache_size: CacheSize = None,
    cache_dir: CacheDir = None,
    tensor_parallel: TensorParallel = None,
    pipeline_parallel: PipelineParallel = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Accuracy and perplexity as EleutherAI's lm-evaluation-harness counts them. Needs the extra `eval`."""
    from endor_jax.evaluate.lm_eval import check_installed, evaluate_tasks
    from endor_jax.generate.model import load

    paths = [path for path in tasks.split(",") if path]
    if not paths:
        raise OptionError("--tasks", got=repr(tasks), expected="at least one file", fix="name some")
    check_installed()
    os.environ["TQDM_DISABLE"] = "1"  # the harness has progress bars of its own
    output = Output(as_json, quiet, verbose)
    with (
        load(
            checkpoint,
            device_memory=device_memory,
            host_memory=host_memory,
            cache=cache_of(cache_size, cache_dir),
            context=context,
            batch=batch_size,
            mesh=mesh_of(pipeline_parallel, tensor_parallel),
        ) as model,
        output.progress() as progress,
        contextlib.redirect_stdout(sys.stderr),  # the harness prints
    ):
        result = evaluate_tasks(model, paths, progress=progress)
        used = model.context
    if result.shortened:
        output.notes.print(
            f"{result.shortened:,} requests were longer than {used:,} tokens: their beginning is cut off"
        )
    if as_json:
        output.json(evaluation_values(result) | {"context": used})
    else:
        _show(result, output)


def evaluation_values(result: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON."""
    return {
        "tasks": {
            task.name: {
                "documents": task.documents,
                "metrics": dict(task.metrics),
                "standard_errors": dict(task.standard_errors),
            }
            for task in result.tasks
        },
        "shortened": result.shortened,
        "lm_eval": result.version,
    }


def _show(result: Evaluation, output: Output) -> None:
    """A row per metric."""
    from rich.table import Table

    table = Table("task", "documents", "metric", "value", caption=f"lm-evaluation-harness {result.version}")
    for task in result.tasks:
        for metric, value in task.metrics.items():
            error = task.standard_errors.get(metric)
            figure = f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"
            table.add_row(task.name, f"{task.documents:,}", metric, figure)
    output.results.print(table)
