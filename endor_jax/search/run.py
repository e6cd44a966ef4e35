"""The search itself: the dense model, try after try, and a check of the best one, until one holds."""

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
from endor_jax.search.result import Try, holds, lowered_limit
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


def run_search(task: Task, place: Workplace) -> Try:
    """Does what is not done yet, and returns the best try whose check holds; its checkpoint is in `place`.

    The best try is just within the limit, so on other text it may be above it. Then the search goes on with a
    limit that is lower by that factor. Raises QualityError if no sparsity holds.
    """
    if place.dense_bytes is None:
        _convert(task, "dense", place.dense_path, settings=_dense_settings(task.settings))
        losses = _scored(task, "dense", place.dense_path, task.text.blocks)
        place.add_dense(losses, stored_bytes=taken_bytes(place.dense_path))
    dense, half = place.dense_losses(), len(task.text.search)
    announce = task.announce
    while True:
        announce = _try_all(task, place, dense[:half], announce)
        best = place.best
        if best is None:
            raise _none_holds(task, place)
        name, path = f"check: {best.percent} %", place.try_path(best.percent)
        # After a failed check the best one is an earlier try, whose checkpoint had been let go.
        _convert(task, name, path, settings=replace(task.settings, sparsity=best.sparsity))
        if best.check is not None:
            return best
        losses = _scored(task, name, path, task.text.check)
        place.add_check(best.percent, quality_of(losses, dense[half:]))


def _try_all(
    task: Task,
    place: Workplace,
    dense: Float[np.ndarray, "blocks targets"],
    announce: Callable[[Survey], None] | None,
) -> Callable[[Survey], None] | None:
    """Tries what bisection still asks for. dense: losses. Returns `announce` if it was not called."""
    while (percent := next_percent(place.held)) is not None:
        name, path = f"try {len(place.tries) + 1}: {percent} %", place.try_path(percent)
        settings = replace(task.settings, sparsity=percent / 100)
        if _convert(task, name, path, settings=settings, announce=announce):
            announce = None  # calibrating takes as much at any sparsity
        quality = quality_of(_scored(task, name, path, task.text.search), dense)
        place.add_try(Try(percent, quality, taken_bytes(path), holds(quality, task.max_increase)))
    return announce


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
    on = "" if lowest.check is None else f", {lowest.check} on text that the search had not seen,"
    return QualityError(
        f"search for {task.destination}",
        got=f"perplexity {lowest.quality}{on} at {LOWEST} % sparsity already",
        expected=f"at most {lowered_limit(place.tries, task.max_increase):+.2%}",
        fix=f"take another method or codec, or remove {place.path} and allow more",
    )
