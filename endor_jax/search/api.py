"""`highest_sparsity`: the sparsest checkpoint whose perplexity stays within a limit.

Try after try is converted beside the destination and scored on the same blocks as the dense model. The best
one is checked on other blocks; if it fails there, the search goes on below it. Only one whose check holds
becomes the destination: by a rename, so it
is byte for byte what `convert` with its sparsity gives. What the search found is written beside it, because
the manifest of a checkpoint is final before anybody can know how good it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from endor_jax.conversion.paths import check_apart
from endor_jax.conversion.prepare import source_digest
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.conversion.survey import Progress, Survey
from endor_jax.errors import DestinationExistsError
from endor_jax.location import local_path
from endor_jax.search.limit import check_asked
from endor_jax.search.result import Search, Try, to_json
from endor_jax.search.run import Task, run_search
from endor_jax.search.text import search_text
from endor_jax.search.workplace import Workplace, is_finished, tries_in
from endor_jax.sources.opening import open_source
from endor_jax.sources.source import Source
from endor_jax.store.destination import check_destination, refusals
from endor_jax.store.digest import digest_bytes
from endor_jax.store.files import sync_directory
from endor_jax.store.journal import peek_lines
from endor_jax.version import VERSION

SCORED_BLOCKS = 40
"""Of 512 tokens: a standard error of about half a percent."""


def highest_sparsity(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    settings: ConvertSettings,
    max_increase: float,
    scored_blocks: int = SCORED_BLOCKS,
    resume: bool = True,
    progress: Progress | None = None,
    announce: Callable[[Survey], None] | None = None,
) -> Search:
    """Converts `source` to the sparsest checkpoint, in whole percents up to 95, whose perplexity is at most
    `max_increase` (0.05: 5 %) above that of the dense model.

    settings: as for a conversion, with a method whose sparsity can be chosen; their own sparsity means
    nothing. The dense model is the source in the same dtype, whatever the codec is. scored_blocks: of the
    calibration's text, behind those for calibration: so many to search with, and as many others to check the
    best try with. If that is above the limit there, the search goes on below it. resume: go on with what an
    interrupted search of the same source, settings, limit and text has left in `destination`.search.
    progress: called with (what, done, total). announce: called at most once, with the survey of the first try
    that is converted, before it is written.
    `destination`.search.json has what is returned; `destination`.search is gone at the end. There are at most
    two checkpoints on disk at a time. The survey bounds the memory of converting; scoring takes what `load`
    takes by default: as much of a checkpoint as fits is kept in up to 90 % of the memory that is free.
    Raises QualityError if no sparsity holds (then nothing is at `destination`), OptionError for settings that
    leave nothing to search, InvalidInputError for a text of too few blocks, DestinationExistsError,
    DestinationBusyError, ResumeError (what was interrupted was another search), and what `convert` and `load`
    raise.
    """
    check_asked(settings, max_increase, scored_blocks)
    report = progress or _silent
    target = _named(local_path(destination, "destination of a search"))
    work = _search_path(target)
    for path in (target, work):
        check_apart(local_path(source, "source"), path)
    if not peek_lines(work):  # otherwise the search may be the one that has put a checkpoint there
        _check_free(target)
    with open_source(Path(source)) as opened:
        text = search_text(opened, settings.calibration, scored_blocks)
        task = Task(opened.path, target, settings, max_increase, text, report, announce)
        job = _job(opened, task)
    with Workplace(work, job, resume=resume) as place:
        chosen = _searched(task, place)
        assert place.dense_bytes is not None
        search = Search(target, max_increase, place.dense_bytes, place.tries, chosen)
        _move(place, search)
    return search


def finished_tries(destination: str | os.PathLike[str], *, max_increase: float) -> tuple[Try, ...]:
    """The tries that a search has finished which was interrupted or found nothing; writes nothing.

    Raises DestinationBusyError while it is under way.
    """
    return tries_in(peek_lines(_search_path(_named(Path(destination)))), max_increase)


def _job(source: Source, task: Task) -> dict[str, Any]:
    """What must be the same for an interrupted search to be gone on with."""
    settings = {name: value for name, value in asdict(task.settings).items() if name != "sparsity"}
    found = {name: digest_bytes(data) for name, data in source.files().items()}
    for i, name in enumerate(source.tensors):
        task.report("checking the source", i, len(source.tensors))
        found[name] = source_digest(source.read(name))
    return {
        "by": "search",
        "version": VERSION,
        "max_increase": task.max_increase,
        "settings": settings,
        "text": task.text.described | {"scored": len(task.text.search)},
        "source": found,
    }


def _searched(task: Task, place: Workplace) -> Try:
    """The best try, searched for unless an interrupted search had found it already."""
    if place.best is not None and _moved(place, place.best, task.destination):
        return place.best
    if place.best is None or place.best.check is None:
        _check_free(task.destination)
    return run_search(task, place)


def _move(place: Workplace, search: Search) -> None:
    """Makes the best try the destination, writes down what was found, and removes what is left."""
    path = place.try_path(search.chosen.percent)
    with refusals(search.path, "to put the best try there", resume=True):
        if path.exists():
            found = _report_path(search.path)
            temporary = found.with_name(f"{found.name}.tmp")
            temporary.write_text(json.dumps(to_json(search), indent=1) + "\n")
            temporary.replace(found)
            path.rename(search.path)
            sync_directory(search.path.absolute().parent)
        place.remove()


def _moved(place: Workplace, best: Try, destination: Path) -> bool:
    """Whether an interrupted search has already put its best try at the destination."""
    if best.check is None:
        return False
    return not place.try_path(best.percent).exists() and is_finished(destination)


def _check_free(destination: Path) -> None:
    """Raises unless a checkpoint can be put at `destination`, and what was found beside it."""
    check_destination(destination)
    report = _report_path(destination)
    taken = [report] if os.path.lexists(report) else []
    taken += [destination] if destination.is_dir() and any(destination.iterdir()) else []
    if taken:
        raise DestinationExistsError(
            f"destination {taken[0]}",
            got="what was there before",
            expected="a path where nothing is yet",
            fix="choose another path, or remove it first",
        )


def _named(destination: Path) -> Path:
    """The same path with a name of its own, which "." and ".." have not."""
    return destination if destination.name not in ("", "..") else destination.resolve()


def _search_path(destination: Path) -> Path:
    """Where a search for a destination keeps its tries."""
    return destination.with_name(f"{destination.name}.search")


def _report_path(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.search.json")


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""
