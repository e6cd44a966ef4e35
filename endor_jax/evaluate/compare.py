"""Two checkpoints of one vocabulary side by side: what a text says of them, their bytes, their speed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from endor_jax.errors import InvalidInputError
from endor_jax.evaluate.divergence import TokenFigures, compare_tokens, logits_bytes
from endor_jax.evaluate.perplexity import Perplexity, check_blocks, of_losses, standard_error
from endor_jax.format.stats import TensorStats
from endor_jax.generate.model import Model, load
from endor_jax.location import Location, locate
from endor_jax.store.manifest import Manifest
from endor_jax.store.overview import manifest_at, stored_bytes_at
from endor_jax.streaming.budget import budgets, default_device

GENERATED_TOKENS = 32
PROMPT_TOKENS = 16
"""Of the generation whose tokens per second are measured."""
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Side:
    """One of two checkpoints.

    stored_bytes: of all files. sparsity and bytes_per_weight: of the matrices of the layers, which pruning is
    about; bytes are those in the parts, bitmap included. tokens_per_second: of one greedy generation; None if
    it was not asked for, or ended before there was something to measure.
    """

    perplexity: Perplexity
    stored_bytes: int
    sparsity: float
    bytes_per_weight: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class Divergence:
    """KL(a ‖ b) per token, in nats; standard_error: of the mean, taking tokens as independent."""

    mean: float
    standard_error: float
    median: float
    percentile_99: float


@dataclass(frozen=True)
class Comparison:
    """b beside a.

    ratio: perplexity of b over that of a; ratio_standard_error: from the losses of both token by token, much
    smaller than what the errors of the two perplexities would give. agreement: share of tokens for which both
    think the same token the likeliest. What a broken model makes of them may not be finite.
    """

    a: Side
    b: Side
    divergence: Divergence
    agreement: float
    ratio: float
    ratio_standard_error: float
    tokens: int
    figures: TokenFigures = field(repr=False, compare=False)


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    blocks: Int[np.ndarray, "blocks length"],
    *,
    device_memory: str | int | None = None,
    host_memory: str | int | None = None,
    batch: int = 1,
    generated_tokens: int = GENERATED_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Scores blocks of token ids with both checkpoints, and lets each generate `generated_tokens` (0: none).

    device_memory, host_memory: budgets of both models together, by default 90 % of what is free; each gets
    half. batch: blocks that pass through a layer together: fewer passes over the checkpoints, for
    8 × length × vocabulary bytes of logits each, which are taken from the host budget first. progress: called
    with (blocks done, blocks in all).
    Raises InvalidInputError if the checkpoints do not share vocabulary and tokenizer, for no blocks, or for
    blocks below two tokens; what `load` raises.
    """
    check_blocks(blocks)
    paths = locate(a), locate(b)
    manifests = manifest_at(a), manifest_at(b)
    vocabulary = check_same_tokens(manifests[0], manifests[1], paths=paths)
    length = blocks.shape[1]
    device, host = budgets(default_device(), device_memory, host_memory)
    host = max(0, host - logits_bytes(vocabulary, length=length, at_once=min(batch, len(blocks))))
    share = {"device_memory": device // 2, "host_memory": host // 2, "context": length, "batch": batch}
    with load(paths[0], **share) as model_a, load(paths[1], **share) as model_b:
        figures = compare_tokens(model_a, model_b, blocks, progress=progress)
        prompt = blocks[0, : min(PROMPT_TOKENS, length - 1)].tolist()
        asked = min(generated_tokens, length - len(prompt))
        rates = [_tokens_per_second(model, prompt, asked) for model in (model_a, model_b)]
    sides = [
        Side(
            of_losses(losses.ravel()),
            stored_bytes_at(path),
            sizes.sparsity,
            sizes.stored_bytes / sizes.elements,
            rate,
        )
        for losses, path, sizes, rate in zip(
            (figures.losses_a, figures.losses_b), paths, map(layer_matrices, manifests), rates, strict=True
        )
    ]
    return _summary(sides[0], sides[1], figures)


def check_same_tokens(a: Manifest, b: Manifest, *, paths: tuple[Location, Location]) -> int:
    """How many tokens the vocabulary has that both checkpoints share.

    Raises InvalidInputError if one has another number of tokens than the other, or another tokenizer.json.
    """
    sizes = [m.layout(m.record("embedding"))["weight"].shape[0] for m in (a, b)]
    if sizes[0] != sizes[1]:
        raise _different(paths, f"vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens", "one vocabulary")
    digests = [m.files.get(TOKENIZER) for m in (a, b)]
    if digests[0] != digests[1]:
        got = " and ".join(
            f"{TOKENIZER} with digest {each}" if each else f"no {TOKENIZER}" for each in digests
        )
        raise _different(paths, got, "the same tokenizer")
    return sizes[0]


def layer_matrices(manifest: Manifest) -> TensorStats:
    """Counts of all matrices of the layers together: no embedding, no head, no vectors."""
    stats = [
        record.stats[name]
        for record in manifest.records
        if record.name.startswith("layers.")
        for name, tensor in manifest.layout(record).tensors
        if len(tensor.shape) == 2
    ]
    return sum(stats, TensorStats(0, 0, 0, 0))


def _summary(a: Side, b: Side, figures: TokenFigures) -> Comparison:
    kl = figures.divergence.astype(np.float64).ravel()
    # A model that pruning broke may have losses that are no numbers; its figures say so, in silence.
    with np.errstate(over="ignore", invalid="ignore"):
        difference = (figures.losses_b.astype(np.float64) - figures.losses_a).ravel()
        ratio = float(np.exp(difference.mean()))
        ratio_standard_error = ratio * standard_error(difference)
        divergence = Divergence(
            mean=float(kl.mean()),
            standard_error=standard_error(kl),
            median=float(np.median(kl)),
            percentile_99=float(np.percentile(kl, 99)),
        )
    return Comparison(
        a=a,
        b=b,
        divergence=divergence,
        agreement=float(figures.agrees.mean()),
        ratio=ratio,
        ratio_standard_error=ratio_standard_error,
        tokens=kl.size,
        figures=figures,
    )


def _tokens_per_second(model: Model, prompt: list[int], count: int) -> float | None:
    """Of a greedy generation, from its second pass of one token on: the first compiles."""
    if count == 0:
        return None
    return model.complete(prompt, max_tokens=count).statistics.generation_tokens_per_second


def _different(paths: tuple[Location, Location], got: str, expected: str) -> InvalidInputError:
    return InvalidInputError(
        f"checkpoints {paths[0]} and {paths[1]}",
        got=got,
        expected=expected,
        fix="compare checkpoints of one model: other token ids mean other texts",
    )
