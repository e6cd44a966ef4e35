"""`endor bench expand|linear` where JAX computes on a device: what is chosen, said, kept and shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table

from endor_jax.bench.record_file import Measured, write_record
from endor_jax.cli.bench.options import reporter, show
from endor_jax.cli.bench.tables import figures_table

if TYPE_CHECKING:
    from endor_jax.bench.device_expand import DeviceExpandCase, DeviceExpandRecord, DeviceExpandSettings
    from endor_jax.bench.device_linear import DeviceLinearCase, DeviceLinearRecord, DeviceLinearSettings
    from endor_jax.bench.device_timing import DeviceTiming
    from endor_jax.cli.console import Output
    from endor_jax.kernels.backends import Implementation

Value = TypeVar("Value")

Full = Annotated[
    bool,
    typer.Option(
        "--full", help="On a GPU: every shape, codec and sparsity (hours) instead of those that show most."
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0, help="On a GPU: begin nothing that would take longer in all. What is left out is said."
    ),
]
Sparsities = Annotated[
    list[float] | None,
    typer.Option(
        min=0,
        max=1,
        help="Fraction of zeros. Default: 0.5; on a GPU several, and may be given several times.",
    ),
]

Implementations = Annotated[
    list[str] | None,
    typer.Option(
        "--implementation",
        help="On a GPU: what is measured, the first being ours; also mosaic, which is offered nowhere yet. "
        "Default: all that are offered there. May be given several times.",
    ),
]


def named(implementations: Sequence[str] | None) -> tuple[Implementation, ...]:
    """The implementations of these names. Raises OptionError for one that no device has."""
    from endor_jax.errors import OptionError

    known: tuple[Implementation, ...] = ("triton", "xla", "mosaic")
    for name in implementations or ():
        if name not in known:
            raise OptionError(
                "--implementation", got=name, expected=", ".join(known), fix="leave it out to take the best"
            )
    return tuple(known[known.index(name)] for name in implementations or ())


def one(name: str, given: Sequence[Value] | None, default: Value) -> Value:
    """The value of an option of which a measurement on the CPU takes one. Raises OptionError for several."""
    from endor_jax.errors import OptionError

    if given and len(given) > 1:
        raise OptionError(
            name,
            got=f"{len(given)} of them",
            expected="one on the CPU",
            fix="run the command once for each, or on a machine where JAX finds a GPU",
        )
    return given[0] if given else default


def refuse(where: str, options: dict[str, Any]) -> None:
    """Raises OptionError for options that were given and mean nothing there."""
    from endor_jax.errors import OptionError

    for name, value in options.items():
        if value is not None and value is not False:
            raise OptionError(
                name,
                got=str(value),
                expected=f"nothing: JAX computes on {where} here",
                fix="leave it out; the environment variable JAX_PLATFORMS chooses where JAX computes",
            )


def keeper(record: Path | None) -> Callable[[Measured], None]:
    """Writes what there is to the record: of a run that is ended from outside, so much is left."""

    def keep(measured: Measured) -> None:
        if record is not None:
            write_record(measured, record)

    return keep


def check(output: Output, faults: Sequence[str]) -> None:
    """Says what is wrong in a record. Raises EndorError if anything is."""
    from endor_jax.errors import EndorError

    for fault in faults:
        output.notes.print(fault)
    if faults:
        raise EndorError(
            "bench",
            got=f"{len(faults)} contenders that failed or are wrong",
            expected="none",
            fix="see the lines above; the record has them too",
        )


def expand_on_device(settings: DeviceExpandSettings, output: Output, *files: Path | None) -> None:
    """Measures, shows, draws. files: the record, the plot."""
    from endor_jax.bench.device_expand import measure_device_expand
    from endor_jax.bench.device_plots import plot_device_expand

    record, plot = files
    measured = measure_device_expand(settings, report=reporter(output), keep=keeper(record))
    show(output, measured, [device_expand_table(measured)], record)
    if plot is not None:
        plot_device_expand(measured, plot)
    check(output, measured.faults)


def linear_on_device(settings: DeviceLinearSettings, output: Output, *files: Path | None) -> None:
    """Measures, shows, draws. files: the record, the plot."""
    from endor_jax.bench.device_linear import measure_device_linear
    from endor_jax.bench.device_plots import plot_device_linear

    record, plot = files
    measured = measure_device_linear(settings, report=reporter(output), keep=keeper(record))
    show(output, measured, [device_linear_table(measured)], record)
    if plot is not None:
        plot_device_linear(measured, plot)
    check(output, measured.faults)


def device_expand_table(record: DeviceExpandRecord) -> Table:
    """A row per cell and contender."""
    title = f"expand on {record.device.kind}: bytes read and written"
    headings = "GB/s", "of a copy", "ms", "middle half", "bits"
    table = figures_table(title, *headings, caption=_caption(record, record.left_out))
    for case in record.cases:
        for timing in case.timings:
            if timing.contender in case.exact:
                table.add_row(f"{case.cell}, {timing.contender}", *_expand_figures(case, timing))
    return table


def _expand_figures(case: DeviceExpandCase, timing: DeviceTiming) -> tuple[str, ...]:
    rate = f"{timing.bytes_per_second / 1e9:.0f}"
    bits = "equal" if case.exact[timing.contender] else "WRONG"
    return rate, f"{case.share(timing):.2f}", *_times(timing), bits


def device_linear_table(record: DeviceLinearRecord) -> Table:
    """A row per cell and contender."""
    title = f"x @ w.T on {record.device.kind}, beside the dense product"
    headings = "times dense", "limit", "ms", "middle half", "error"
    table = figures_table(title, *headings, caption=_caption(record, record.left_out))
    for case in record.cases:
        for timing in case.timings:
            if timing.contender in case.errors:
                table.add_row(f"{case.cell}, {timing.contender}", *_linear_figures(case, timing))
    return table


def _linear_figures(case: DeviceLinearCase, timing: DeviceTiming) -> tuple[str, ...]:
    from endor_jax.bench.device_linear import LINEAR

    ratios = case.ratio(timing), case.limit_ratio if timing.contender == LINEAR else None
    ratio, limit = ("" if value is None else f"{value:.2f}" for value in ratios)
    return ratio, limit, *_times(timing), f"{case.errors[timing.contender]:.1e}"


ISSUE_BOUND = 0.8
"""Share of a sample that issuing may take before it is marked."""


def _times(timing: DeviceTiming) -> tuple[str, str]:
    """Median, marked where issuing took as long, and quartiles."""
    lower, upper = (f"{1e3 * seconds:.4f}" for seconds in timing.quartile_seconds)
    mark = "*" if timing.issue_share > ISSUE_BOUND else ""
    return f"{1e3 * timing.median_seconds:.4f}{mark}", f"{lower} to {upper}"


def _caption(record: Any, left_out: Sequence[object]) -> str:
    from endor_jax.bench.device_copy import copied, copy_bytes_per_second

    copies = sorted(copy_bytes_per_second(case.timings) / 1e9 for case in record.cases)
    device = record.device
    text = f"copy {copies[0]:.0f} to {copies[-1]:.0f} GB/s; " if copies else ""
    text += f"last-level cache {device.cache_bytes / 2**20:.0f} MiB ({device.cache_from}); "
    compiling = sum(
        timing.first_seconds for case in record.cases for timing in case.timings if not copied(timing)
    )
    text += f"compiling took {compiling:.0f} s; * issuing took most of the time"
    return text + (f"; {len(left_out)} cells left out" if left_out else "")
