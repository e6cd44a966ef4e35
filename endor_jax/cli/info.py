"""`endor info`: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from endor_jax.cli.console import Checkpoint, Json, Output, Quiet, Verbose

if TYPE_CHECKING:
    from endor_jax.format.stats import TensorStats
    from endor_jax.store.manifest import Manifest


def command(
    checkpoint: Checkpoint,
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor, not only the sums.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show sizes, sparsity and codecs of a checkpoint. Reads the manifest only."""
    from endor_jax.store.overview import manifest_at

    output = Output(as_json, quiet, verbose)
    manifest = manifest_at(checkpoint)
    values = describe(manifest, checkpoint)
    if as_json:
        output.json(values)
        return
    table = Table(show_header=False, box=None)
    for name, value in (values | {"made": manifest.made}).items():
        if name != "tensors":
            table.add_row(name, _readable(name, value))
    output.results.print(table)
    if tensors:
        output.results.print(_tensor_table(values["tensors"]))


def describe(manifest: Manifest, path: str) -> dict[str, Any]:
    """What `info --json` prints: stored_bytes of all files, layer_sparsity of their compressed tensors."""
    from endor_jax.format.layout import DenseLayout
    from endor_jax.store.overview import stored_bytes_at

    rows = [
        {
            "name": f"{record.name}.{name}",
            "shape": list(tensor.shape),
            "dtype": tensor.dtype,
            "codec": getattr(getattr(tensor, "codec", None), "name", "dense"),
            "sparsity": record.stats[name].sparsity,
            "stored_bytes": record.stats[name].stored_bytes,
        }
        for record in manifest.records
        for name, tensor in manifest.layout(record).tensors
    ]
    stats = [stats for record in manifest.records for stats in record.stats.values()]
    dense = sum(manifest.layout(record).dense_bytes for record in manifest.records)
    stored = stored_bytes_at(path)
    layers = [record for record in manifest.records if record.name.startswith("layers.")]
    return {
        "layers": len(layers),
        "parameters": sum(s.elements for s in stats),
        "dense_bytes": dense,
        "stored_bytes": stored,
        "ratio": dense / stored,
        "sparsity": _sparsity(stats),
        "layer_sparsity": _sparsity(
            record.stats[name]
            for record in layers
            for name, tensor in manifest.layout(record).tensors
            if not isinstance(tensor, DenseLayout)
        ),
        "signatures": len(manifest.signatures),
        "shards": manifest.shards,
        "tensors": rows,
    }


def _sparsity(stats: Iterable[TensorStats]) -> float:
    elements, nonzero = 0, 0
    for each in stats:
        elements, nonzero = elements + each.elements, nonzero + each.nonzero
    return 1 - nonzero / elements if elements else 0.0


def _readable(name: str, value: Any) -> str:
    from endor_jax.streaming.sizes import format_size

    if name.endswith("_bytes"):
        return format_size(value)
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return f"{value:,}"


def _tensor_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("tensor", "shape", "dtype", "codec", "sparsity", "bytes")
    for row in rows:
        shape = " × ".join(map(str, row["shape"]))
        figures = f"{row['sparsity']:.3f}", f"{row['stored_bytes']:,}"
        table.add_row(row["name"], shape, row["dtype"], row["codec"], *figures)
    return table
