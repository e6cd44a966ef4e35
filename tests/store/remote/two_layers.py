"""Arrays of a small record, for writers that are driven by hand."""

from __future__ import annotations

import numpy as np

from endor_jax.format.layout import TensorSpec

ARRAYS = {"w": np.arange(64 * 80, dtype=np.float32).reshape(64, 80)}
SPECS = {"w": TensorSpec((64, 80), "float32", None)}
