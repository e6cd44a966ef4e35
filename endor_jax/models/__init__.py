"""Decoder models: Flax NNX modules behind pure functions of their parameters, no checkpoint knowledge."""

from endor_jax.models.axis import Axis, HeadShare, gather, head_share
from endor_jax.models.cache import KVCache, as_bits, as_floats
from endor_jax.models.cache import create as create_cache
from endor_jax.models.config import LlamaConfig, OptConfig, from_hf
from endor_jax.models.decoder import Decoder, Params, block, decoder, final, stem, tapped_block
from endor_jax.models.shapes import part_shapes

__all__ = [
    "Axis",
    "Decoder",
    "HeadShare",
    "KVCache",
    "LlamaConfig",
    "OptConfig",
    "Params",
    "as_bits",
    "as_floats",
    "block",
    "create_cache",
    "decoder",
    "final",
    "from_hf",
    "gather",
    "head_share",
    "part_shapes",
    "stem",
    "tapped_block",
]
