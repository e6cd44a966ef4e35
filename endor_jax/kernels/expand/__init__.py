"""Expand: a compressed tensor to the dense array it was encoded from, on the device, bit for bit."""

from endor_jax.kernels.expand.api import expand, expand_all

__all__ = ["expand", "expand_all"]
