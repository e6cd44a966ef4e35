"""Shapes of all parameters of a model, part by part: what a source must have and a checkpoint must hold."""

from __future__ import annotations

from endor_jax.models.decoder import Decoder

Shapes = dict[str, tuple[int, ...]]


def part_shapes(decoder: Decoder) -> dict[str, Shapes]:
    """Part → parameter → shape, in the order x passes through them.

    Parts are "embedding", "stem", "layers.0" and so on, "final", "head"; no "stem", "final" or "head" where
    there is none.
    """
    config = decoder.config
    vocabulary = {"weight": (config.vocabulary_size, config.embedding_size)}
    parts: dict[str, Shapes] = {"embedding": vocabulary}
    if decoder.stem_shapes:
        parts["stem"] = decoder.stem_shapes
    parts |= {f"layers.{i}": decoder.block_shapes for i in range(config.layers)}
    if decoder.final_shapes:
        parts["final"] = decoder.final_shapes
    if not config.tied_head:
        parts["head"] = vocabulary
    return parts
