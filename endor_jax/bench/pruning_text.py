"""The text that pruning is measured with: calibration and scoring take different blocks of it.

A model that knows one kind of text only is measured with what it writes itself, sampled at temperature 1:
nothing else that is always there would be text to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from endor_jax import models
from endor_jax.bench.pruning_cells import LENGTH, PruningSettings
from endor_jax.bench.workloads import make_whole
from endor_jax.errors import InvalidInputError
from endor_jax.generate.model import Model, load
from endor_jax.generate.sampling import Sampler
from endor_jax.store.digest import digest_bytes
from endor_jax.store.reader import Checkpoint
from endor_jax.text import Tokenizer, tokenizer_of
from endor_jax.text.blocks import shuffled_blocks
from endor_jax.text.corpus import read_corpus

OPENINGS = 32
"""The likeliest first tokens: a text begins with each of them for every seed."""


@dataclass(frozen=True)
class PruningText:
    """path: the file, None for Python's help texts. scored: the blocks to score."""

    path: str | None
    scored: Int[np.ndarray, "blocks length"]

    @property
    def digest(self) -> str:
        """Of the scored token ids."""
        return digest_bytes(np.ascontiguousarray(self.scored).view(np.uint8).reshape(-1))


def pruning_text(settings: PruningSettings, dense: Path) -> PruningText:
    """The text of these settings; the model's own is written by the checkpoint `dense`, unless an earlier run
    left it beside that.

    Raises InvalidInputError for a text of too few blocks, or a model without tokenizer, or without start
    token where it is to write; NotFoundError for a text that is not there.
    """
    with Checkpoint(dense) as opened:
        files = {name: opened.read_file(name) for name in opened.manifest.kept_files}
        positions = models.from_hf(opened.model_config()).max_positions
    tokenizer = tokenizer_of(files, dense)
    length = settings.length or min(LENGTH, positions)
    blocks = settings.calibration_blocks + settings.evaluation_blocks
    data = settings.data
    if settings.own_text:
        path = dense.with_name(f"{dense.stem}-text-{blocks}x{length}.txt")
        if not path.exists():
            make_whole(path, lambda making: _write_own(dense, making, blocks=blocks, length=length))
        data = str(path)
    first, count = settings.calibration_blocks, settings.evaluation_blocks
    ids = tokenizer.encode(read_corpus(data))
    return PruningText(data, shuffled_blocks(ids, length, seed=settings.seed, first=first, count=count))


def _write_own(dense: Path, path: Path, *, blocks: int, length: int) -> None:
    """Writes at least so many blocks of the model's own, in whole texts with its start token between them."""
    with load(dense, context=length, batch=OPENINGS) as model:
        tokenizer = model.tokenizer
        if tokenizer is None or tokenizer.bos_id is None:
            raise InvalidInputError(
                f"text of {dense}",
                got="no start token",
                expected="a tokenizer with one, for the model to begin with",
                fix="give a text (--data FILE)",
            )
        between, found, tokens = tokenizer.special_tokens["bos_token"], [], 0
        for text in _own_texts(model, tokenizer, tokenizer.bos_id):
            found.append(text)
            tokens += len(tokenizer.encode(text))
            if tokens >= blocks * length:
                break
    path.write_text(between.join(found), encoding="utf-8")


def _own_texts(model: Model, tokenizer: Tokenizer, start: int) -> Iterator[str]:
    """Texts without end: one for every opening with every seed."""
    likely = np.argsort(-model.logits([[start]])[0, 0], kind="stable")[:OPENINGS].tolist()
    prompts = [[start, token] for token in likely if token not in tokenizer.eos_ids]
    for seed in itertools.count():
        sampler = Sampler(temperature=1.0, seed=seed)
        batch = dict(model.complete_batch(prompts, max_tokens=model.context - 2, sampler=sampler))
        for index, completion in sorted(batch.items()):
            yield tokenizer.decode([*prompts[index], *completion.token_ids])
