"""Linear: x @ w.T with w compressed or dense, float32 accumulation."""

from endor_jax.kernels.linear.api import linear
from endor_jax.kernels.linear.dense import dense

__all__ = ["dense", "linear"]
