"""`endor generate`: text from a checkpoint, as it comes, or the answers to a file of prompts."""

from __future__ import annotations

import sys
from dataclasses import asdict
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
    read_text,
)
from endor_jax.cli.devices import PipelineParallel, TensorParallel, mesh_of
from endor_jax.cli.joined import Coordinator, PeerTimeout, Processes, ProcessIndex, joined
from endor_jax.cli.plan import plan_values, prediction_values
from endor_jax.cli.sampling import MinP, RepetitionPenalty, Seed, Stop, Temp, TopK, TopP

if TYPE_CHECKING:
    from endor_jax.cli.batch_file import Prompt
    from endor_jax.generate.continuation import Wishes
    from endor_jax.generate.model import Model
    from endor_jax.generate.statistics import Achieved, Statistics
    from endor_jax.streaming.prediction import Prediction


def command(
    checkpoint: Checkpoint,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt; - reads it from stdin.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 100,
    temp: Temp = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    context: Annotated[int | None, typer.Option(help="Tokens of prompt and generation together.")] = None,
    batch_file: Annotated[
        str | None,
        typer.Option(help='Prompts, a JSON object per line with "prompt" or "messages"; answers likewise.'),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Of a batch file: prompts that pass through the layers together.")
    ] = 8,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Of those, how many one step takes. Default: 32 or all.")
    ] = None,
    output_file: Annotated[
        str | None,
        typer.Option("--output", help="Of a batch file: append each answer here as it ends, or go on here."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what an interrupted batch left.")
    ] = True,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    cache_size: CacheSize = None,
    cache_dir: CacheDir = None,
    tensor_parallel: TensorParallel = None,
    pipeline_parallel: PipelineParallel = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process_index: ProcessIndex = None,
    peer_timeout: PeerTimeout = None,
    ignore_chat_template: Annotated[
        bool, typer.Option("--ignore-chat-template", help="Take the prompt as it is.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Generate text. Chat models get the prompt in their chat template."""
    from endor_jax.cli.batch import Batch, answer_batch, answers_file
    from endor_jax.cli.batch_file import read_prompts
    from endor_jax.generate.continuation import wishes_for
    from endor_jax.generate.model import load
    from endor_jax.generate.sampling import Sampler

    output = Output(as_json, quiet, verbose)
    _check_prompts(prompt, batch_file, output_file)
    if processes is not None:
        _check_processes(tensor_parallel or pipeline_parallel, output_file)
    sampler = Sampler(temp, top_p, seed, top_k, min_p, repetition_penalty)
    wishes = wishes_for(max_tokens, sampler, stop or ())
    prompts = None if batch_file is None else read_prompts(batch_file)
    text = "" if prompt is None else _text(prompt)
    sequences = 1 if prompts is None else min(batch_size, len(prompts))
    with (
        joined(
            coordinator, processes=processes, process_index=process_index, peer_timeout=peer_timeout
        ) as peers,
        load(
            checkpoint,
            device_memory=device_memory,
            host_memory=host_memory,
            cache=cache_of(cache_size, cache_dir),
            context=context,
            batch=sequences,
            micro_batch=micro_batch,
            mesh=mesh_of(pipeline_parallel, tensor_parallel),
            peers=peers,
        ) as model,
    ):
        if prompts is None:
            result = _one(model, text, wishes, output, as_it_is=ignore_chat_template)
        else:
            ids = [_ids(model, prompt, as_it_is=ignore_chat_template) for prompt in prompts]
            batch = Batch(prompts, ids, wishes)
            with answers_file(model, batch, output_file, resume=resume) as answers:
                result = answer_batch(
                    model, batch, output, answers=answers, announce=lambda: announce(model, output)
                )
        assert model.statistics is not None
        if as_json:
            output.json(result | statistics_values(model.statistics) | _model_values(model))
        else:
            output.notes.print(summary(model, model.statistics), style="dim")


def _check_prompts(prompt: str | None, batch_file: str | None, output_file: str | None) -> None:
    """Raises OptionError unless there is one source of prompts, and a file for the answers to many only."""
    from endor_jax.errors import OptionError

    if (prompt is None) == (batch_file is None):
        raise OptionError(
            "generate",
            got="neither --prompt nor --batch-file" if prompt is None else "--prompt and --batch-file",
            expected="one of them",
            fix='say -p "Once upon a time"',
        )
    if output_file is not None and batch_file is None:
        raise OptionError(
            "generate", got="--output and --prompt", expected="--batch-file", fix="redirect stdout instead"
        )


def _check_processes(parallel: int | None, output_file: str | None) -> None:
    """Raises OptionError unless several processes are told how to share the model, and who answers."""
    from endor_jax.errors import OptionError

    if parallel is None or output_file is not None:
        raise OptionError(
            "generate",
            got="--processes and " + ("--output" if parallel else "no --tensor-parallel"),
            expected="--tensor-parallel or --pipeline-parallel, and answers on stdout of process 0",
            fix="say how many devices all processes have together, and redirect stdout",
        )


def _model_values(model: Model) -> dict[str, Any]:
    """What was planned and expected of a model, as JSON."""
    return {
        "expected_peak_host_bytes": model.expected_peak_host_bytes,
        "reader": model.reader,
        "bytes_fetched": model.bytes_fetched,
        "plan": plan_values(model.plan),
        "plans": {str(number): plan_values(plan) for number, plan in model.plans.items()},
        "prediction": prediction_values(model.prediction),
    }


def announce(model: Model, output: Output) -> None:
    """Says what the process will take and how fast it will be, before the first token; the plan too if that
    is wanted."""
    from endor_jax.streaming.sizes import format_size

    for number, plan in model.plans.items():
        output.detail(f"stage {number}\n{plan!r}" if model.stages > 1 else repr(plan))
    expected = format_size(model.expected_peak_host_bytes)
    output.notes.print(f"at most {expected} of resident memory", style="dim")
    if model.prediction is not None:
        output.notes.print(f"predicted {model.prediction}", style="dim")


def _one(model: Model, text: str, wishes: Wishes, output: Output, *, as_it_is: bool) -> dict[str, Any]:
    """Prints the text as it comes; what `--json` says about it."""
    ids = prompt_ids(model, text, ignore_chat_template=as_it_is)
    generation = model.generate(ids, max_tokens=wishes.max_tokens, sampler=wishes.sampler, stop=wishes.stop)
    announce(model, output)  # now that nothing can be refused any more
    tokens = []
    for token in generation:
        output.text(token.text)
        tokens.append(token)
    output.text("\n")
    return {
        "text": "".join(token.text for token in tokens),
        "token_ids": [token.id for token in tokens],
        "finish_reason": tokens[-1].finish_reason,
    }


def _ids(model: Model, prompt: Prompt, *, as_it_is: bool) -> list[int] | str:
    if prompt.messages is not None:
        return model.chat_ids(prompt.messages)
    assert prompt.text is not None
    return prompt_ids(model, prompt.text, ignore_chat_template=as_it_is)


def _text(prompt: str) -> str:
    """The prompt, or all of stdin for "-"."""
    return read_text(sys.stdin.read) if prompt == "-" else prompt


def prompt_ids(model: Model, text: str, *, ignore_chat_template: bool) -> list[int] | str:
    """The prompt as one user turn of the model's chat template, if it has one and it is wanted."""
    tokenizer = model.tokenizer
    if tokenizer is None or tokenizer.chat_template is None or ignore_chat_template:
        return text
    return model.chat_ids([{"role": "user", "content": text}])


def statistics_values(statistics: Statistics) -> dict[str, Any]:
    """Statistics as JSON."""
    return {
        "prompt_tokens": statistics.prompt_tokens,
        "cached_tokens": statistics.cached_tokens,
        "prompt_tokens_per_second": statistics.prompt_tokens_per_second,
        "generation_tokens_per_second": statistics.generation_tokens_per_second,
        "bytes_read": statistics.bytes_read,
        "bytes_transferred": statistics.bytes_transferred,
        "peak_device_bytes": statistics.peak_device_bytes,
        "peak_host_bytes": statistics.peak_host_bytes,
        "achieved": achieved_values(statistics.achieved),
    }


def achieved_values(achieved: Achieved | None) -> dict[str, Any] | None:
    """What passes took, as JSON."""
    return None if achieved is None else asdict(achieved) | {"binding": achieved.binding}


def summary(model: Model, statistics: Statistics) -> str:
    """Statistics of a generation in a line; in one more, what a pass took beside what was predicted."""
    from endor_jax.streaming.sizes import format_size

    expected = format_size(model.expected_peak_host_bytes)
    measured = statistics.generation_tokens_per_second
    rate = "" if measured is None else f" at {measured:.2f} tokens/s"
    line = (
        f"prompt {statistics.prompt_tokens} tokens at {statistics.prompt_tokens_per_second:.1f} tokens/s, "
        f"generation {statistics.generated_tokens} tokens{rate}, "
        f"{format_size(statistics.bytes_read)} read ({model.reader}), "
        f"peak memory {format_size(statistics.peak_host_bytes)} (at most {expected} expected)"
    )
    achieved, prediction = statistics.achieved, model.prediction
    if achieved is None or prediction is None:
        return line
    return f"{line}\n{comparison(prediction, achieved)}"


def comparison(prediction: Prediction, achieved: Achieved) -> str:
    """Predicted beside achieved: tokens per second, and seconds of each stage of a pass."""
    waits = achieved.read_wait_seconds + achieved.transfer_wait_seconds
    hidden = ", the rest hidden behind what it waited for" if waits > achieved.seconds / 10 else ""
    took = f"at least {achieved.compute_seconds:.3g} s taken{hidden}"
    gathering = f" and gathering {prediction.gather_seconds:.3g} s" if prediction.gather_seconds else ""
    stages = [f"computing {prediction.compute_seconds:.3g} s{gathering} predicted, {took}"]
    if prediction.transfer_seconds:
        took = f"{achieved.transfer_wait_seconds:.3g} s waited for"
        stages.insert(0, f"transfer {prediction.transfer_seconds:.3g} s predicted, {took}")
    if prediction.read_seconds:
        took = f"{achieved.read_seconds:.3g} s taken, {achieved.read_wait_seconds:.3g} s of them waited for"
        stages.insert(0, f"reading {prediction.read_seconds:.3g} s predicted, {took}")
    return (
        f"predicted {prediction.tokens_per_second:.3g} tokens/s, achieved {achieved.tokens_per_second:.3g}; "
        f"per pass {'; '.join(stages)}"
    )
