"""Sizes of a real checkpoint: what was estimated from its config.json, and what docs/format.md promises."""

from __future__ import annotations

import pytest

import endor_jax as endor
from endor_jax.conversion.estimate import estimate_config
from endor_jax.errors import MissingDependencyError
from endor_jax.sources import open_source

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def stories():
    from tests.real_models import stories15m

    try:
        return stories15m()
    except MissingDependencyError as error:
        pytest.skip(str(error))


def layer_bytes_per_weight(manifest, path) -> float:
    """Bytes of all files of the layers' parts, over the weights of their matrices."""
    size = weights = 0
    for record in manifest.records:
        if record.name.startswith("layers."):
            for part in record.parts:
                files = [file for file in (path / part.path).rglob("*") if file.is_file()]
                size += sum(file.stat().st_size for file in files)
            matrices = [t for _, t in manifest.layout(record).tensors if len(t.shape) == 2]
            weights += sum(t.shape[0] * t.shape[1] for t in matrices)
    return size / weights


@pytest.mark.parametrize(
    ("values", "sparsity", "most"), [("packed", 0.5, 0.79), ("raw", 0.5, 1.16), ("packed", None, 1.49)]
)
def test_bytes_of_file_per_weight(tmp_path, stories, values, sparsity, most, record_property):
    prune = {"prune": "magnitude", "sparsity": sparsity} if sparsity else {}
    conversion = endor.convert(stories, tmp_path / "dst", dtype="bfloat16", values=values, **prune)
    got = layer_bytes_per_weight(conversion.manifest, tmp_path / "dst")
    record_property("bytes_per_weight", got)
    print(f"{values} at {sparsity}: {got:.4f} bytes of file per weight")
    assert got <= most


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5])
def test_an_estimate_from_the_config_is_close(tmp_path, stories, sparsity):
    prune = {"prune": "magnitude", "sparsity": sparsity} if sparsity else {}
    real = endor.convert(stories, tmp_path / "dst", dtype="bfloat16", **prune)
    with open_source(stories) as source:
        estimated = estimate_config(source.config, dtype="bfloat16", sparsity=sparsity)
    print(f"at {sparsity}: estimated {estimated.stored_bytes}, real {real.stored_bytes}")
    assert estimated.stored_bytes == pytest.approx(real.stored_bytes, rel=0.1)
    by_record = {record.name: record.stored_bytes for record in real.manifest.records}
    for record in estimated.records:
        assert record.stored_bytes == pytest.approx(by_record[record.name], rel=0.1)
