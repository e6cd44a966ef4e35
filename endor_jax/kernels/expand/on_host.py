"""Expand where the dense array is wanted in host memory and nothing else is computed: exporting."""

from __future__ import annotations

import jax
import numpy as np

from endor_jax.format.decode import decode
from endor_jax.format.tensor import SparseTensor
from endor_jax.kernels.backends import implementations
from endor_jax.kernels.expand.api import expand
from endor_jax.kernels.place import cpu_place


def expand_on_host(tensor: SparseTensor) -> np.ndarray:
    """The dense array, read-only: by the extension on every processor, or by NumPy (20 times slower) where
    there is none, or where JAX was told not to compute on CPUs. The same bits."""
    if implementations(cpu_place())[0] != "cpu":
        return decode(tensor)
    try:
        (device, *_) = jax.local_devices(backend="cpu")
    except RuntimeError:  # JAX_PLATFORMS names others only
        return decode(tensor)
    with jax.default_device(device):
        return np.asarray(expand(tensor, implementation="cpu"))
