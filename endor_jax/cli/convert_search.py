"""`endor convert --max-perplexity-increase`: the search for the highest sparsity, and what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endor_jax.cli.console import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from endor_jax.conversion.settings import ConvertSettings
    from endor_jax.conversion.survey import Survey
    from endor_jax.search.result import Search, Try

OPTION = "--max-perplexity-increase"


def limit_of(text: str, *, sparsity: float | None, dry_run: bool) -> float:
    """The increase that a text stands for. Raises OptionError for one that is none, and for options that do
    not go with it."""
    from endor_jax.errors import OptionError
    from endor_jax.search.limit import parse_increase

    limit = parse_increase(text)
    if sparsity is not None:
        raise OptionError(
            OPTION,
            got=f"--sparsity {sparsity} too",
            expected="one of them",
            fix="leave --sparsity out: it is what is searched",
        )
    if dry_run:
        raise OptionError(
            OPTION,
            got="--dry-run too",
            expected="a run that writes",
            fix="leave one of them out: what a sparsity does to the text is only known by trying",
        )
    return limit


def search(
    output: Output,
    source: str,
    destination: str,
    *,
    settings: ConvertSettings,
    limit: float,
    resume: bool,
    announce: Callable[[Survey], None],
) -> None:
    """Searches, and shows all tries and the check; of a search that found nothing, its tries.

    announce: says what the first try will take.
    """
    from endor_jax.errors import QualityError
    from endor_jax.search.api import finished_tries, highest_sparsity
    from endor_jax.search.result import to_json, tries_json

    def announce_try(survey: Survey) -> None:
        announce(survey)
        output.notes.print("scoring a try takes more: what fits of it is kept in free memory", style="dim")

    try:
        with output.progress() as progress:
            found = highest_sparsity(
                source,
                destination,
                settings=settings,
                max_increase=limit,
                resume=resume,
                progress=_noted(output, progress),
                announce=announce_try,
            )
    except QualityError:
        tries = finished_tries(destination, max_increase=limit)
        output.notes.print(_table(tries, limit))
        if output.as_json:
            output.json({"path": None, "max_increase": limit, "tries": tries_json(tries)})
        raise
    if output.as_json:
        output.json(to_json(found))
    else:
        _show(output, found)


def _noted(output: Output, progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """The same progress with a line for every step: a search takes long, and logs have no bar."""
    latest = ""

    def report(what: str, done: int, total: int) -> None:
        nonlocal latest
        step = what.split(",")[0]  # "try 3: 56 %, scoring"
        if step != latest:
            output.notes.print(step, style="dim")
            latest = step
        progress(what, done, total)

    return report


def _show(output: Output, found: Search) -> None:
    from endor_jax.streaming.sizes import format_size

    output.results.print(_table(found.tries, found.max_increase))
    output.line(
        f"check on other text: {found.check} (perplexity {found.check.perplexity:.3f}, "
        f"dense {found.check.dense_perplexity:.3f}, {found.check.tokens:,} tokens)"
    )
    stored, dense = format_size(found.chosen.stored_bytes), format_size(found.dense_bytes)
    output.line(f"{found.path}: {found.chosen.percent} % sparsity, {stored}, where the dense one has {dense}")


def _table(tries: Sequence[Try], limit: float) -> Table:
    from rich.table import Table

    from endor_jax.streaming.sizes import format_size

    table = Table(title=f"perplexity at most {limit:+.2%}", title_justify="left")
    for heading in ("try", "sparsity", "perplexity", "increase", "on other text", "files", "holds"):
        table.add_column(heading, justify="right")
    for number, each in enumerate(tries, 1):
        table.add_row(
            str(number),
            f"{each.percent} %",
            f"{each.quality.perplexity:.3f}",
            str(each.quality),
            "" if each.check is None else str(each.check),
            format_size(each.stored_bytes),
            "yes" if each.held else "no",
        )
    return table
