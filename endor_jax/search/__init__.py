"""The highest sparsity within a quality budget."""

from endor_jax.search.api import highest_sparsity as highest_sparsity
