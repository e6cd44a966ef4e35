"""A file of prompts answered: on stdout in their order, or appended to a file as each ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from endor_jax.cli.console import Output

if TYPE_CHECKING:
    from endor_jax.cli.answers import Answers
    from endor_jax.cli.batch_file import Prompt
    from endor_jax.generate.continuation import Wishes
    from endor_jax.generate.model import Completion, Model
    from endor_jax.generate.statistics import Statistics


@dataclass(frozen=True)
class Batch:
    """Prompts with their token ids (or texts), and what is asked of each generation."""

    prompts: Sequence[Prompt]
    ids: Sequence[list[int] | str]
    wishes: Wishes


@contextmanager
def answers_file(model: Model, batch: Batch, name: str | None, *, resume: bool) -> Iterator[Answers | None]:
    """The file that answers are appended to, if they are to be."""
    from endor_jax.cli.answers import Answers, asked

    if name is None:
        yield None
        return
    digest = model.checkpoint_digest
    encoded = [model.encode(ids) if isinstance(ids, str) else ids for ids in batch.ids]
    pairs = zip(batch.prompts, encoded, strict=True)
    belonging = [asked(prompt.id, ids, batch.wishes, checkpoint_digest=digest) for prompt, ids in pairs]
    with Answers(name, belonging, resume=resume) as answers:
        yield answers


def answer_batch(
    model: Model, batch: Batch, output: Output, *, answers: Answers | None, announce: Callable[[], None]
) -> dict[str, Any]:
    """Answers what is not answered yet; what `--json` says about all.

    announce: called when nothing can be refused any more.
    """
    done: dict[int, dict[str, Any]] = dict(answers.kept) if answers else {}
    rest = [index for index in range(len(batch.prompts)) if index not in done]
    printed = 0
    with output.progress() as progress:

        def report(statistics: Statistics) -> None:
            rate = statistics.generation_tokens_per_second
            made = f"{statistics.generated_tokens} tokens" + (f", {rate:.1f}/s" if rate else "")
            progress(made, len(done), len(batch.prompts))

        completions = model.complete_batch(
            [batch.ids[index] for index in rest],
            max_tokens=batch.wishes.max_tokens,
            sampler=batch.wishes.sampler,
            stop=batch.wishes.stop,
            progress=report,
        )
        announce()
        output.notes.print(f"{model.sequences} sequences at once, {model.micro_batch} in a step", style="dim")
        if len(rest) < len(batch.prompts):
            output.notes.print(f"{len(done)} of {len(batch.prompts)} answers are there already", style="dim")
        progress("generating", len(done), len(batch.prompts))
        for place, completion in completions:
            index = rest[place]
            done[index] = _answer(batch.prompts[index], completion)
            if answers:
                answers.add(index, done[index])
            while answers is None and printed in done and not output.as_json:
                output.line(json.dumps(done[printed], ensure_ascii=False))
                printed += 1
    return {
        "completions": [done[index] for index in range(len(batch.prompts))],
        "sequences": model.sequences,
        "micro_batch": model.micro_batch,
    }


def _answer(prompt: Prompt, completion: Completion) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
    }
