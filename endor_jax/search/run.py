"""The search itself: the dense model, try after try, and the check of the best one, each done once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from endor_jax.conversion.pipeline import run_conversion
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.conversion.survey import Progress, Survey
from endor_jax.errors import QualityError
from endor_jax.search.bisection import LOWEST, next_percent
from endor_jax.search.result import Quality, Try, holds
from endor_jax.search.scoring import block_losses, quality_of
from endor_jax.search.text import SearchText
from endor_jax.search.workplace import Workplace, is_finished
from endor_jax.store.destination import taken_bytes


@dataclass(frozen=True)
class Task:
    """What is searched, settled before anything is written. announce: for the first try's survey."""

    source: Path
    destination: Path
    settings: ConvertSettings
    max_increase: float
    text: SearchText
    report: Progress
    announce: Callable[[Survey], None] | None


def run_search(task: Task, place: Workplace) -> tuple[Try, Quality]:
    """Does what is not done yet: the best try, and the check of it. Both are in `place` then.

    Raises QualityError if no sparsity holds, or if the best one does not hold on the text of the check.
    """
    if place.dense_bytes is None:
        _convert(task, "dense", place.dense_path, settings=_dense_settings(task.settings))
        losses = _scored(task, "dense", place.dense_path, task.text.blocks)
        place.add_dense(losses, stored_bytes=taken_bytes(place.dense_path))
    dense, half = place.dense_losses(), len(task.text.search)
    announce = task.announce
    while (percent := next_percent(place.held)) is not None:
        name, path = f"try {len(place.tries) + 1}: {percent} %", place.try_path(percent)
        settings = replace(task.settings, sparsity=percent / 100)
        if _convert(task, name, path, settings=settings, announce=announce):
            announce = None  # calibrating takes as much at any sparsity
        quality = quality_of(_scored(task, name, path, task.text.search), dense[:half])
        place.add_try(Try(percent, quality, taken_bytes(path), holds(quality, task.max_increase)))
    best = place.best
    if best is None:
        raise _none_holds(task, place)
    path = place.try_path(best.percent)
    if place.check is None:
        losses = _scored(task, f"check: {best.percent} %", path, task.text.check)
        place.add_check(quality_of(losses, dense[half:]))
    assert place.check is not None
    if not holds(place.check, task.max_increase):
        raise _check_failed(task, best, place.check, path)
    return best, place.check


def _convert(
    task: Task,
    name: str,
    path: Path,
    *,
    settings: ConvertSettings,
    announce: Callable[[Survey], None] | None = None,
) -> bool:
    """Converts the source to `path`; False if that was done already."""

    def converting(what: str, done: int, total: int) -> None:
        task.report(f"{name}, {what}", done, total)

    if is_finished(path):
        return False
    run_conversion(task.source, path, settings=settings, progress=converting, announce=announce)
    return True


def _scored(
    task: Task, name: str, path: Path, blocks: Int[np.ndarray, "blocks length"]
) -> Float[np.ndarray, "blocks targets"]:
    def scoring(done: int, total: int) -> None:
        task.report(f"{name}, scoring", done, total)

    return block_losses(path, blocks, progress=scoring)


def _dense_settings(settings: ConvertSettings) -> ConvertSettings:
    """How the dense model is converted: the same dtype, nothing pruned, nothing quantised."""
    return ConvertSettings(dtype=settings.dtype, keep_negative_zero=settings.keep_negative_zero)


def _none_holds(task: Task, place: Workplace) -> QualityError:
    lowest = next(each for each in place.tries if each.percent == LOWEST)
    return QualityError(
        f"search for {task.destination}",
        got=f"perplexity {lowest.quality} at {LOWEST} % sparsity already",
        expected=f"at most {task.max_increase:+.2%}",
        fix=f"take another method or codec, or remove {place.path} and allow more",
    )


def _check_failed(task: Task, best: Try, check: Quality, path: Path) -> QualityError:
    return QualityError(
        f"check for {task.destination}",
        got=f"perplexity {check} at {best.percent} % sparsity, on text that the search had not seen "
        f"({best.quality} on what it had)",
        expected=f"at most {task.max_increase:+.2%}",
        fix=f"take {path} if that will do, convert with a lower sparsity, or remove {path.parent} and "
        "allow more",
    )
