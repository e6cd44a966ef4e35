"""Matrices by the method that was asked for: what is stored of them, from what calibration summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from endor_jax.conversion.forward import Statistics
from endor_jax.conversion.prepare import cast
from endor_jax.conversion.settings import UPDATING, ConvertSettings
from endor_jax.format.quantise import Quantised, quantise
from endor_jax.format.values import INTEGER_BITS, Codec
from endor_jax.prune.admm import admm
from endor_jax.prune.factor import inverse_factor
from endor_jax.prune.magnitude import apply_mask
from endor_jax.prune.pruned import Pruned
from endor_jax.prune.retarget import DAMPING, retarget
from endor_jax.prune.sparsegpt import sparsegpt, sparsegpt_with_factor
from endor_jax.prune.statistics import Paired, SquaredNorms, no_gram, no_paired, no_squared_norms
from endor_jax.prune.structure import Structure
from endor_jax.prune.wanda import wanda

Stored = np.ndarray | Quantised
"""A tensor as it will be encoded."""


def no_sums(settings: ConvertSettings) -> Callable[[int], Statistics]:
    """What makes the sums that a method asks for, before the first input, from a number of columns."""
    if settings.prune not in UPDATING:
        return no_squared_norms
    return no_paired if settings.target == "model" else no_gram


def pruned_matrices(
    weights: Mapping[str, np.ndarray],
    sums: Statistics,
    *,
    settings: ConvertSettings,
    sparsity: float,
    codecs: Mapping[str, Codec | None],
) -> Iterator[tuple[str, Stored]]:
    """One after another the matrices (outputs, inputs) of one input without the elements that the method
    drops, in their own dtype; already quantised for a codec of integers.

    sums: over that input. sparsity: of each. codecs: by name. Raises InvalidInputError as the methods do, and
    if an updated weight is too large for the dtype.
    """
    structure = settings.mask_structure
    if isinstance(sums, SquaredNorms):
        norms = np.asarray(sums.sums)
        for name, weight in weights.items():
            bits = _bits(codecs[name])
            yield name, _wanda(weight, norms, sparsity=sparsity, structure=structure, bits=bits)
        return
    gram, meant = (sums.gram, _meant(sums)) if isinstance(sums, Paired) else (sums, _as_it_is)
    if settings.prune == "sparsegpt":
        factor = inverse_factor(gram.products)
        for name, weight in weights.items():
            wide, bits = meant(weight.astype(np.float32)), _bits(codecs[name])
            result = sparsegpt_with_factor(wide, factor, sparsity=sparsity, structure=structure, bits=bits)
            yield name, _stored(result, name, weight.dtype)
        return
    for name, weight in weights.items():
        wide, bits = meant(weight.astype(np.float32)), _bits(codecs[name])
        result = admm(wide, gram.products, sparsity=sparsity, structure=structure)
        if bits is not None:
            result = sparsegpt(result.weight, gram.products, mask=result.mask, bits=bits)
        yield name, _stored(result, name, weight.dtype)


def _meant(sums: Paired) -> Callable[[np.ndarray], np.ndarray]:
    """What a matrix should be for the inputs it gets, to give what it gave for those it was made for."""
    factor = inverse_factor(sums.gram.products, damping=DAMPING)

    def meant(weight: np.ndarray) -> np.ndarray:
        return np.asarray(
            retarget(weight, factor, gram_products=sums.gram.products, cross_products=sums.cross.products)
        )

    return meant


def _as_it_is(weight: np.ndarray) -> np.ndarray:
    return weight


def _bits(codec: Codec | None) -> int | None:
    """Bits of a codec's integers, None for one that loses nothing."""
    return INTEGER_BITS.get(codec.kind) if codec is not None else None


def _wanda(
    weight: np.ndarray, norms: np.ndarray, *, sparsity: float, structure: Structure, bits: int | None
) -> Stored:
    mask = np.asarray(wanda(weight.astype(np.float32), norms, sparsity=sparsity, structure=structure))
    kept = apply_mask(weight, mask)
    return kept if bits is None else quantise(kept, bits, importance=norms)


def _stored(result: Pruned, name: str, dtype: np.dtype) -> Stored:
    if result.values is not None and result.scales is not None:
        values, scales = np.asarray(result.values), np.asarray(result.scales)
        return Quantised(values, scales, values.shape, dtype.name)
    rounded = cast(np.asarray(result.weight), name, dtype.name)
    return np.where(rounded == 0, dtype.type(0), rounded)  # no −0.0 where a small weight was rounded away
