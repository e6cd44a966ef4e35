"""The figures of a pruning record in words: for the terminal, and as the tables of docs/pruning.md."""

from __future__ import annotations

from collections.abc import Sequence

from endor_jax.bench.pruning_cells import Cell
from endor_jax.bench.pruning_record import MeasuredCell, PruningRecord
from endor_jax.conversion.settings import PRUNE_METHODS

VALUES = ("auto", "int8", "int4")
"""In this order; others after them."""
HEADINGS = (
    "method",
    "zeros",
    "values",
    "perplexity",
    "× dense",
    "KL, nats",
    "agreement",
    "bytes per weight",
    "files, MB",
    "seconds",
    "memory, GB",
)
WORDS = 3
"""Of the headings, those whose column is no figure."""


def ordered_cells(record: PruningRecord) -> list[MeasuredCell]:
    """By sparsity, method and values."""
    return sorted(record.cells, key=lambda each: _order(each.cell))


def series_names(record: PruningRecord) -> list[str]:
    """Methods with structure and allocation, in the order of methods; without the dense model."""
    cells = sorted((each.cell for each in record.cells), key=lambda cell: _order(cell)[1:])
    return list(dict.fromkeys(cell.series for cell in cells if cell.method != "none"))


def cell_row(measured: MeasuredCell) -> tuple[str, ...]:
    """A row under HEADINGS."""
    cell = measured.cell
    return (
        cell.series,
        f"{cell.sparsity:.0%}".replace("%", " %"),
        cell.values,
        f"{_rounded(measured.perplexity)} ± {_rounded(measured.standard_error)}",
        f"{_rounded(measured.ratio)} ± {_rounded(measured.ratio_standard_error)}",
        f"{measured.divergence:.3f}",
        f"{100 * measured.agreement:.1f} %",
        f"{measured.bytes_per_weight:.3f}",
        f"{measured.stored_bytes / 1e6:.0f}",
        f"{measured.convert_seconds:.0f}",
        f"{measured.peak_bytes / 1e9:.2f}",
    )


def ratio_headings(record: PruningRecord) -> tuple[str, ...]:
    """Over `ratio_rows`."""
    return ("method, values", *(f"{100 * sparsity:.0f} %" for sparsity in _sparsities(record)))


def ratio_rows(record: PruningRecord) -> list[tuple[str, ...]]:
    """Perplexity as a multiple of the dense model's: a row per method and values, a column per sparsity."""
    kept = sorted((each for each in record.cells), key=lambda each: _order(each.cell)[1:])
    names = dict.fromkeys(_name(each.cell) for each in kept)
    found = {(_name(each.cell), each.cell.sparsity): _rounded(each.ratio) for each in kept}
    sparsities = _sparsities(record)
    return [(name, *(found.get((name, each), "") for each in sparsities)) for name in names]


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """A table whose first `words` columns are left-aligned, the others right-aligned."""
    rule = ["---" if column < words else "---:" for column in range(len(headings))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rule, *rows)) + "\n"


def record_markdown(record: PruningRecord) -> str:
    """Both tables of a record."""
    ratios = markdown(ratio_headings(record), ratio_rows(record), words=1)
    cells = markdown(HEADINGS, [cell_row(each) for each in ordered_cells(record)], words=WORDS)
    return f"{ratios}\n{cells}"


def _name(cell: Cell) -> str:
    return cell.series if cell.values == "auto" else f"{cell.series}, {cell.values}"


def _sparsities(record: PruningRecord) -> list[float]:
    return sorted({each.cell.sparsity for each in record.cells})


def _order(cell: Cell) -> tuple[float, int, str, int, str]:
    values = VALUES.index(cell.values) if cell.values in VALUES else len(VALUES)
    return cell.sparsity, PRUNE_METHODS.index(cell.method), cell.series, values, cell.values


def _rounded(value: float) -> str:
    """Three decimals, or three digits where that is fewer."""
    if value < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
