"""What `endor bench` prints: a table per case, best figures first to be compared by eye."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from endor_jax.bench.decode import DecodeRecord
    from endor_jax.bench.expand import ExpandCase, ExpandRecord
    from endor_jax.bench.linear import LinearCase, LinearRecord
    from endor_jax.bench.memory import MemoryRecord
    from endor_jax.bench.race import Timing


def memory_table(record: MemoryRecord) -> Table:
    """A row per verb."""
    from endor_jax.streaming.sizes import format_size

    def size(count: int | None) -> str:
        return "none" if count is None else format_size(count)

    table = Table(record.model, "stated", "limit", "taken", "seconds", "kept")
    for sample in record.samples:
        table.add_row(
            sample.verb,
            size(sample.stated_bytes),
            size(sample.limit_bytes),
            size(sample.taken_bytes),
            f"{sample.seconds:.1f}",
            "yes" if sample.kept else "no",
        )
    return table


def expand_tables(record: ExpandRecord) -> list[RenderableType]:
    """A table per case."""
    return [_expand_table(case) for case in record.cases]


def _expand_table(case: ExpandCase) -> Table:
    from endor_jax.bench.matrices import shape_name

    title = f"expand {shape_name(case.shape)}, {case.codec}, {case.threads} thread(s)"
    limit = f"limit {case.limit_bytes_per_second / 1e9:.1f} GB/s"
    table = _table(title, "GB/s", "of memcpy", "ms", "least", "middle half", "samples", caption=limit)
    for timing in case.timings:
        rate = timing.bytes_per_second
        figures = f"{rate / 1e9:.2f}", f"{rate / case.memcpy_bytes_per_second:.2f}"
        table.add_row(timing.contender, *figures, *_milliseconds(timing))
    return table


def linear_tables(record: LinearRecord) -> list[RenderableType]:
    """A table per case, then the crossovers."""
    from endor_jax.bench.matrices import shape_name

    tables: list[RenderableType] = [_linear_table(case) for case in record.cases]
    crossovers = _table(
        "rows of x from which another is faster than fused",
        "one of ours",
        "a dense peer",
        caption="never: not up to the most rows measured",
    )
    for each in record.crossovers:
        name = f"{shape_name(each.shape)}, {each.threads} thread(s)"
        crossovers.add_row(name, *(str(rows or "never") for rows in (each.of_ours, each.of_all)))
    return [*tables, crossovers] if record.crossovers else tables


def _linear_table(case: LinearCase) -> Table:
    from endor_jax.bench.bandwidth import READ
    from endor_jax.bench.matrices import shape_name

    title = f"linear {shape_name(case.shape)}, {case.rows} row(s) of x, {case.threads} thread(s)"
    limit = f"limit {case.limit_weights_per_second / 1e9:.1f} G weights/s"
    headings = "G weights/s", "of dense peers", "GB/s", "ms", "least", "middle half", "samples"
    table = _table(title, *headings, caption=limit)
    for timing in case.timings:
        rate, ratio = f"{case.weights / timing.median_seconds / 1e9:.2f}", f"{case.ratio(timing):.2f}"
        figures = ("", "") if timing.contender.startswith(READ) else (rate, ratio)
        bandwidth = f"{timing.bytes_per_second / 1e9:.2f}"
        table.add_row(timing.contender, *figures, bandwidth, *_milliseconds(timing))
    return table


def decode_table(record: DecodeRecord) -> Table:
    """A row per contender."""
    caption = f"ours is {record.peer_ratio:.2f} times as fast as the faster peer"
    headings = "tokens/s", "slowest", "fastest", "prompt ms", "tokens as ours"
    table = _table(f"{record.model}, {record.threads} thread(s)", *headings, caption=caption)
    for timing in record.timings:
        rates = sorted(each.tokens_per_second for each in timing.generations)
        prompts = sorted(each.prompt_seconds for each in timing.generations)
        table.add_row(
            timing.contender,
            *(f"{rate:.1f}" for rate in (timing.tokens_per_second, rates[0], rates[-1])),
            f"{1e3 * prompts[len(prompts) // 2]:.0f}",
            f"{record.same_tokens(timing)} of {len(timing.token_ids)}",
        )
    return table


def _table(title: str, *headings: str, caption: str) -> Table:
    """Names to the left, figures to the right."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _milliseconds(timing: Timing) -> tuple[str, ...]:
    """Median, least, quartiles, and of how many."""
    median, least = (f"{1e3 * seconds:.3f}" for seconds in (timing.median_seconds, timing.least_seconds))
    lower, upper = (f"{1e3 * seconds:.3f}" for seconds in timing.quartile_seconds)
    return median, least, f"{lower} to {upper}", str(len(timing.seconds))
