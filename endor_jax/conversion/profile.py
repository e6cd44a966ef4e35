"""What the unpruned model does with a few blocks of the calibration text, before anything is pruned.

One pass over the layers, with as many blocks as one step of calibration takes: a few percent of what
calibrating takes. Codecs are chosen by what Wanda would keep, given these inputs; and OWL shares sparsity out
by how many outliers a layer has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from endor_jax.conversion.forward import layer_step, statistics_step, stem_step
from endor_jax.conversion.prepare import prepare
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.models import Decoder
from endor_jax.prune.allocate import outlier_ratio
from endor_jax.prune.statistics import SquaredNorms, no_squared_norms
from endor_jax.prune.wanda import wanda_scores
from endor_jax.sources.mapping import Place
from endor_jax.sources.source import Source


@dataclass(frozen=True)
class LayerProfile:
    """What reached one layer, and its matrices: squared norms of the inputs by weight, (inputs,) float32.

    outliers: share of Wanda's scores above OWL's threshold, over all matrices of the layer.
    """

    squared_norms: dict[str, np.ndarray]
    outliers: float


def profile_layers(
    source: Source,
    decoder: Decoder,
    names: Mapping[str, Mapping[str, str]],
    blocks: Int[np.ndarray, "blocks length"],
    *,
    settings: ConvertSettings,
    report: Callable[[str], None],
) -> dict[str, LayerProfile]:
    """Runs blocks through the unpruned model, one layer in memory at a time.

    names: of the source, by record and tensor. report: called with what is being done.
    """

    def read(record: str) -> dict[str, np.ndarray]:
        report(f"measuring the unpruned {record}")
        return {
            tensor: prepare(source, name, Place(record, tensor), settings=unpruned).array
            for tensor, name in names[record].items()
        }

    unpruned = ConvertSettings(dtype=settings.dtype)
    x = jax.device_put(read("embedding")["weight"][blocks].astype(np.float32))
    if "stem" in names:
        x = stem_step(decoder, jax.device_put(read("stem")), x)
    found: dict[str, LayerProfile] = {}
    for record in names:
        if record.startswith("layers."):
            arrays = read(record)
            params = jax.device_put(arrays)
            found[record] = _measured(decoder, arrays, params, x)
            x = layer_step(decoder, params, x)
    return found


def _measured(
    decoder: Decoder, arrays: Mapping[str, np.ndarray], params: dict[str, jax.Array], x: jax.Array
) -> LayerProfile:
    inputs = decoder.block_inputs
    sums = {name: no_squared_norms(arrays[name].shape[1]) for name in set(inputs.values())}
    sums = statistics_step(decoder, params, x, sums)
    norms: dict[str, SquaredNorms] = {name: sums[first] for name, first in inputs.items()}
    squared = {name: np.asarray(its.sums) for name, its in norms.items()}
    scores = [wanda_scores(params[name], its.sums) for name, its in norms.items()]
    return LayerProfile(squared, float(outlier_ratio(scores)))
