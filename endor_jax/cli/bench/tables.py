"""Tables of suites: names to the left, figures to the right; best figures first to be compared by eye."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from endor_jax.bench.race import Timing


def figures_table(title: str, *headings: str, caption: str) -> Table:
    """Names to the left, figures to the right."""
    made = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    made.add_column("")
    for heading in headings:
        made.add_column(heading, justify="right")
    return made


def milliseconds(timing: Timing) -> tuple[str, ...]:
    """Median, least, quartiles, and of how many."""
    median, least = (f"{1e3 * seconds:.3f}" for seconds in (timing.median_seconds, timing.least_seconds))
    lower, upper = (f"{1e3 * seconds:.3f}" for seconds in timing.quartile_seconds)
    return median, least, f"{lower} to {upper}", str(len(timing.seconds))
