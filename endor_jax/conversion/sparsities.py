"""What every layer is pruned to: the same, or more where the model loses less by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from endor_jax.conversion.settings import ConvertSettings
from endor_jax.prune.allocate import owl, uniform


def layer_sparsities(
    records: Iterable[str], settings: ConvertSettings, outliers: Mapping[str, float]
) -> dict[str, float]:
    """Sparsity by record, of the layers. outliers: by layer, for the allocation "owl" (`prune/allocate.py`).

    All layers of a model have matrices of the same shapes: each counts the same.
    """
    layers = [record for record in records if record.startswith("layers.")]
    if settings.allocation == "uniform":
        shares = uniform(len(layers), sparsity=settings.target_sparsity)
    else:
        ratios = [outliers[layer] for layer in layers]
        shares = owl(ratios, [1] * len(layers), sparsity=settings.target_sparsity)
    return dict(zip(layers, shares, strict=True))
