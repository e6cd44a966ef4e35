"""`load` and Model: a language model whose weights stay compressed and stream through the device."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from jaxtyping import Float

from endor_jax import models
from endor_jax.errors import InvalidInputError
from endor_jax.generate.loading import make_runner
from endor_jax.generate.placement import geometry, plan_model
from endor_jax.generate.runner import Runner, advance, score
from endor_jax.generate.sampling import Sampler, sample
from endor_jax.generate.statistics import Statistics, peak_device_bytes, peak_host_bytes
from endor_jax.store.reader import Checkpoint
from endor_jax.store.writer import PARTS
from endor_jax.streaming.budget import budgets, default_device
from endor_jax.streaming.plan import DEPTH
from endor_jax.text import StreamingDecoder, Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Token:
    """A generated token. `text` is what became certain with it; empty while a character is incomplete."""

    id: int
    text: str


@dataclass(frozen=True)
class Completion:
    """A whole generation: text and ids of what was generated, without the prompt, and what it took."""

    text: str
    token_ids: list[int]
    statistics: Statistics


class Model:
    """A loaded model; made by `load`. One generation at a time; `close` is idempotent.

    plan: where the records are and what they take. tokenizer: None if the checkpoint has none; prompts are
    token ids then. statistics: of the latest generation.
    """

    def __init__(self, checkpoint: Checkpoint, runner: Runner, tokenizer: Tokenizer | None):
        self._checkpoint, self._runner = checkpoint, runner
        self.tokenizer = tokenizer
        self.plan = runner.executor.plan
        self.statistics: Statistics | None = None

    def generate(
        self, prompt: str | Sequence[int], *, max_tokens: int = 100, sampler: Sampler | None = None
    ) -> Iterator[Token]:
        """Yields tokens as they come, up to and with an end-of-text token, at most `max_tokens`.

        prompt: text, taken as it is (no chat template), or token ids. sampler: greedy by default.
        Raises InvalidInputError if prompt and max_tokens exceed the context, or for text without a tokenizer.
        """
        ids = self._ids(prompt)
        self._check_room(len(ids), max_tokens)
        return self._generate(ids, max_tokens, sampler or Sampler())

    def _generate(self, ids: list[int], max_tokens: int, sampler: Sampler) -> Iterator[Token]:
        random = np.random.default_rng(sampler.seed)
        decoder = StreamingDecoder(self.tokenizer, prompt_ids=ids) if self.tokenizer else None
        ends = self.tokenizer.eos_ids if self.tokenizer else frozenset[int]()
        caches = [self._runner.new_cache() for _ in range(self._runner.layers)]
        moved = self._runner.executor.bytes_read, self._runner.executor.bytes_transferred
        clock = time.perf_counter()
        logits = advance(self._runner, caches, ids, start=0)
        prompt_seconds = time.perf_counter() - clock
        waited = 0.0  # what the consumer does between tokens is not ours
        for count in range(1, max_tokens + 1):
            token = sample(logits, sampler, random)
            last = count == max_tokens or token in ends
            if count <= 2:  # from the second token on: the step that gave it compiles
                clock, waited = time.perf_counter(), 0.0
            seconds = time.perf_counter() - clock - waited
            self._record(len(ids), prompt_seconds, count, seconds, before=moved)
            text = (decoder.feed(token) + (decoder.finish() if last else "")) if decoder else ""
            left = time.perf_counter()
            yield Token(token, text)
            waited += time.perf_counter() - left
            if last:
                return
            logits = advance(self._runner, caches, [token], start=len(ids) + count - 1)

    def complete(
        self, prompt: str | Sequence[int], *, max_tokens: int = 100, sampler: Sampler | None = None
    ) -> Completion:
        """All tokens of `generate` at once, with statistics."""
        tokens = list(self.generate(prompt, max_tokens=max_tokens, sampler=sampler))
        assert self.statistics is not None
        return Completion(
            "".join(token.text for token in tokens), [token.id for token in tokens], self.statistics
        )

    def logits(
        self, token_ids: Sequence[Sequence[int]] | np.ndarray
    ) -> Float[np.ndarray, "batch length vocabulary"]:
        """Float32 logits at every position of (batch, length) token ids, layer-major.

        As many sequences as fill the context share a pass over the layers.

        Raises InvalidInputError for an empty or ragged batch, or one longer than the context.
        """
        batch = [_integers(row) for row in token_ids]
        if len({len(row) for row in batch}) != 1:
            raise InvalidInputError(
                "token ids",
                got=f"sequences of lengths {sorted({len(row) for row in batch})}",
                expected="one length",
                fix="score sequences of different lengths in separate calls",
            )
        return score(self._runner, batch)

    @property
    def vocabulary_size(self) -> int:
        """Logits per position; token ids are below it."""
        return self._runner.embedding.vocabulary

    def _record(
        self, prompt: int, prompt_seconds: float, generated: int, seconds: float, *, before: tuple[int, int]
    ) -> None:
        """Sets `statistics`; before: bytes read and transferred when the generation began."""
        executor = self._runner.executor
        self.statistics = Statistics(
            prompt,
            prompt_seconds,
            generated,
            seconds,
            executor.bytes_read - before[0],
            executor.bytes_transferred - before[1],
            peak_host_bytes(),
            peak_device_bytes(self._runner.device),
        )

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            return _integers(prompt)
        if self.tokenizer is None:
            raise InvalidInputError(
                f"checkpoint {self._checkpoint.path}",
                got="a text prompt",
                expected="token ids, because there is no tokenizer.json",
                fix="put tokenizer.json beside the source and convert again, or pass ids",
            )
        return self.tokenizer.encode(prompt)

    def _check_room(self, prompt_tokens: int, max_tokens: int) -> None:
        room = self._runner.shape.context
        if max_tokens < 1 or prompt_tokens + max_tokens > room:
            raise InvalidInputError(
                "generation",
                got=f"{prompt_tokens} prompt tokens and max_tokens {max_tokens}",
                expected=f"at least 1 new token and at most {room} in all",
                fix="shorten the prompt, lower max_tokens, or load with a larger context",
            )

    def close(self) -> None:
        """Stops reading and frees the weights. Idempotent."""
        self._runner.executor.close()
        self._checkpoint.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _integers(ids: Sequence[int] | np.ndarray) -> list[int]:
    """Token ids as Python ints; operator.index refuses what is none, 1.7 for example."""
    try:
        return [operator.index(token) for token in ids]
    except TypeError as error:
        raise InvalidInputError(
            "token ids", got=str(error), expected="integers", fix="encode text first"
        ) from error


def load(
    path: str | os.PathLike[str],
    *,
    device_memory: str | int | None = None,
    host_memory: str | int | None = None,
    context: int | None = None,
    depth: int = DEPTH,
) -> Model:
    """Opens a converted model and places its records.

    device_memory, host_memory: budgets ("8GiB" or bytes), by default 90 % of what is free. context: most
    tokens of prompt and generation together, by default the model's own limit, at most 2048. depth: records
    whose transfer is issued ahead.
    Raises NotFoundError, CorruptCheckpointError, DoesNotFitError (with the smallest plan), InvalidInputError.
    """
    device = default_device()
    checkpoint = Checkpoint(path)
    manifest = checkpoint.manifest
    decoder = models.decoder(models.from_hf(checkpoint.model_config()))
    dtype = manifest.layout(manifest.record("embedding"))["weight"].dtype
    shape = geometry(decoder.config, dtype, context)
    device_bytes, host_bytes = budgets(device, device_memory, host_memory)
    plan = plan_model(
        manifest, shape, device_budget_bytes=device_bytes, host_budget_bytes=host_bytes, depth=depth
    )
    for name in manifest.files:  # those of parts are checked when the parts are read
        if not name.startswith(PARTS):
            checkpoint.read_file(name)
    tokenizer = load_tokenizer(checkpoint.path) if "tokenizer.json" in manifest.files else None
    return Model(checkpoint, make_runner(checkpoint, decoder, shape, plan=plan, device=device), tokenizer)
