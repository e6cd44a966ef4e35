"""Rope divisors of a GGUF file -> `rope_scaling` of a Hugging Face config.

llama.cpp stores Llama 3's scaling as what it divides each frequency by, without the numbers that it came
from. Its converter knows one scaling only, that of every published Llama 3.1, 3.2 and 3.3, with a `factor` of
each model's own: if the stored divisors are those, the numbers are known.
Source: llama.cpp, convert_hf_to_gguf.py, `LlamaModel.generate_extra_tensors`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32

from endor_jax.errors import UnsupportedError

LOW, HIGH, CONTEXT = 1.0, 4.0, 8192
TOLERANCE = 1e-5
"""Relative: the converter rounds frequencies to float32 before it derives divisors from them."""


def llama3_scaling(
    divisors: Float32[np.ndarray, " pairs"], *, theta: float, where: str
) -> dict[str, Any] | None:
    """The `rope_scaling` whose divisors these are; None if all are one.

    Raises UnsupportedError for any others.
    """
    if np.all(divisors == 1):
        return None
    # The slowest pairs are divided by the factor itself. A damaged file may say anything, NaN included.
    factor = float(str(np.max(divisors)))
    known = 1 < factor < np.inf
    if not known or not np.allclose(
        divisors, _divisors(theta, factor, len(divisors)), rtol=TOLERANCE, atol=0
    ):
        raise UnsupportedError(
            where,
            got="rope scaling divisors of another kind",
            expected=f"all ones, or those of Llama 3 ({LOW:g} and {HIGH:g} of {CONTEXT} positions)",
            fix="convert from the Hugging Face safetensors of this model instead",
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": CONTEXT,
    }


def _divisors(theta: float, factor: float, pairs: int) -> np.ndarray:
    """(pairs,) float64: 1 for fast pairs, `factor` for slow ones, 1 / ((1 − s) / factor + s) between them."""
    turns = CONTEXT * theta ** (-np.arange(pairs) / pairs) / (2 * np.pi)
    share = np.clip((turns - LOW) / (HIGH - LOW), 0, 1)
    return 1 / ((1 - share) / factor + share)
