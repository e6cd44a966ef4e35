"""`load` and Model: a language model whose weights stay compressed and stream through the device."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from endor_jax import models
from endor_jax.arrays import round_up
from endor_jax.errors import InvalidInputError
from endor_jax.generate.batch import generate_batch
from endor_jax.generate.continuation import FinishReason, Token, Wishes, wishes_for
from endor_jax.generate.costs import costs_of
from endor_jax.generate.exchange import Exchange
from endor_jax.generate.footprint import expected_peak_bytes
from endor_jax.generate.loading import check_records, lane_shape, make_pipeline, place_stages
from endor_jax.generate.pipeline import Pipeline, meter_of
from endor_jax.generate.placement import CHUNK
from endor_jax.generate.sampling import Sampler
from endor_jax.generate.scoring import TokenScores, losses, score, token_scores
from endor_jax.generate.session import Session, chat_ids, check_room
from endor_jax.generate.statistics import Statistics
from endor_jax.peers.peers import Peers
from endor_jax.store.manifest import to_json
from endor_jax.store.reader import Checkpoint
from endor_jax.store.remote.cache import PartCache
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.devices import one_device, plain_mesh, stages_over
from endor_jax.streaming.prediction import Prediction, predict
from endor_jax.streaming.timeline import Timeline
from endor_jax.text import Tokenizer, tokenizer_of


@dataclass(frozen=True)
class Completion:
    """A whole generation: text and ids of what was generated, without the prompt, why it ended, what it took.

    In a batch, `statistics` are those of the batch up to the moment at which this one ended.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    statistics: Statistics


class Model:
    """A loaded model; made by `load`. One pass at a time; `close` is idempotent.

    plan: where the records are and what they take; of a pipeline, in the first of this process's stages.
    plans: in each of them, by number. expected_peak_host_bytes: a bound on the resident memory of this
    process, from before anything was loaded. prediction: what a pass takes, from before anything was loaded
    too, from rates of this machine and its disk, not of this model's weights; None for a checkpoint of up to
    16 MiB, for which nothing is measured, for a pipeline, and for a mesh over several processes. tokenizer:
    None if the checkpoint has none; prompts are token ids then. statistics: of the latest generation.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        pipeline: Pipeline,
        tokenizer: Tokenizer | None,
        *,
        expected_peak_host_bytes: int,
        prediction: Prediction | None = None,
    ):
        self._checkpoint, self._pipeline = checkpoint, pipeline
        self.tokenizer = tokenizer
        self.expected_peak_host_bytes = expected_peak_host_bytes
        self.prediction = prediction
        self.plans = pipeline.plans
        self.plan = pipeline.runner.executor.plan
        self.statistics: Statistics | None = None

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 100,
        sampler: Sampler | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[Token]:
        """Yields tokens as they come, up to and with an end-of-text token, at most `max_tokens`.

        prompt: text, taken as it is (no chat template), or token ids. sampler: greedy by default. stop:
        strings before which the text ends, wherever tokens begin and end.
        Raises InvalidInputError if prompt and max_tokens exceed the context, or for text without a tokenizer.
        """
        wishes = wishes_for(max_tokens, sampler, stop)
        ids = self._ids(prompt)
        check_room(self._pipeline, len(ids), max_tokens)
        return self._generate(ids, wishes)

    def _generate(self, ids: list[int], wishes: Wishes) -> Iterator[Token]:
        session = self.session()
        for token in session.generate(ids, wishes):
            self.statistics = session.statistics
            yield token

    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 100,
        sampler: Sampler | None = None,
        stop: Sequence[str] = (),
    ) -> Completion:
        """What `generate` gives, at once. Raises as it does."""
        batch = self.complete_batch([prompt], max_tokens=max_tokens, sampler=sampler, stop=stop)
        return next(completion for _, completion in batch)

    def complete_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int = 100,
        sampler: Sampler | None = None,
        stop: Sequence[str] = (),
        progress: Callable[[Statistics], None] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Yields (index of a prompt, its completion) as they end; prompts may differ in length.

        As many as `load(batch=...)` said are under way at once and share every record that is read. The same
        tokens as one by one, but for the rounding of products of another shape. progress: called after every
        pass with the figures so far.
        Raises as `generate` does, before anything is generated.
        """
        wishes = wishes_for(max_tokens, sampler, stop)
        batch = []
        for number, prompt in enumerate(prompts, 1):
            try:
                batch.append(self._ids(prompt))
                check_room(self._pipeline, len(batch[-1]), max_tokens)
            except InvalidInputError as error:
                if len(prompts) == 1:
                    raise
                where = f"prompt {number} of {len(prompts)}, {error.where}"
                raise InvalidInputError(
                    where, got=error.got, expected=error.expected, fix=error.fix
                ) from error
        return self._complete_batch(batch, wishes, progress)

    def _complete_batch(
        self, batch: list[list[int]], wishes: Wishes, progress: Callable[[Statistics], None] | None
    ) -> Iterator[tuple[int, Completion]]:
        meter = meter_of(self._pipeline)
        self.statistics = meter.statistics

        def after_pass() -> None:
            self.statistics = meter.statistics
            if progress is not None:
                progress(self.statistics)

        for index, sequence, text in generate_batch(
            self._pipeline, self.tokenizer, batch, wishes=wishes, meter=meter, after_pass=after_pass
        ):
            assert sequence.finish_reason is not None
            yield index, Completion(text, sequence.generated, sequence.finish_reason, self.statistics)

    def session(self) -> Session:
        """A conversation whose history stays in a cache of its own, beyond what the plan counts for one."""
        return Session(self._pipeline, self.tokenizer)

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation in the model's chat template, up to where the answer begins.

        messages: {"role", "content"} objects. Raises InvalidInputError without a tokenizer or a template, or
        for messages that the template refuses.
        """
        return chat_ids(self.tokenizer, messages)

    def logits(
        self, token_ids: Sequence[Sequence[int]] | np.ndarray
    ) -> Float[np.ndarray, "batch length vocabulary"]:
        """Float32 logits at every position of (batch, length) token ids, layer-major.

        As many sequences as the plan has activations for share a pass over the layers.

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
        return score(self._pipeline, batch)

    def losses(self, token_ids: Sequence[Sequence[int]] | np.ndarray) -> list[Float[np.ndarray, " targets"]]:
        """Float32 negative log-likelihoods of each sequence's tokens but the first; lengths may differ.

        Takes as few passes over the layers as `logits`, and no memory for logits.
        Raises InvalidInputError for sequences below two tokens or longer than the context.
        """
        return losses(self._pipeline, [_integers(row) for row in token_ids])

    def token_scores(self, token_ids: Sequence[Sequence[int]] | np.ndarray) -> list[TokenScores]:
        """`losses`, and whether each token was the likeliest. Raises as `losses` does."""
        return token_scores(self._pipeline, [_integers(row) for row in token_ids])

    @property
    def reader(self) -> str:
        """How parts are read from disk (`store/direct.py`)."""
        return self._checkpoint.reader

    @property
    def bytes_fetched(self) -> int:
        """Bytes that came over the network since it was opened; 0 of a local checkpoint."""
        return self._checkpoint.bytes_fetched

    @property
    def checkpoint_digest(self) -> str:
        """That of the checkpoint's manifest, which has those of all its parts: 16 hexadecimal digits."""
        return to_json(self._checkpoint.manifest)["digest"]

    @property
    def vocabulary_size(self) -> int:
        """Logits per position; token ids are below it."""
        return self._pipeline.shape.config.vocabulary_size

    @property
    def context(self) -> int:
        """The most tokens of a sequence, prompt and generation together."""
        return self._pipeline.shape.context

    @property
    def sequences(self) -> int:
        """The most that are under way at once in `complete_batch`, in all lanes of a pipeline."""
        return self._pipeline.lanes * self._pipeline.shape.sequences

    @property
    def stages(self) -> int:
        """Stages of the pipeline, those of other processes too; 1 without one."""
        return self._pipeline.count

    @property
    def micro_batch(self) -> int:
        """How many of them one step takes when as many as can be are under way."""
        return self._pipeline.shape.rows

    def sequences_per_pass(self, length: int) -> int:
        """How many sequences of some length `logits` and `losses` take through a layer together."""
        return max(1, self._pipeline.shape.positions // round_up(length, CHUNK))

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        return self.encode(prompt) if isinstance(prompt, str) else _integers(prompt)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises InvalidInputError without a tokenizer."""
        if self.tokenizer is None:
            raise InvalidInputError(
                f"checkpoint {self._checkpoint.path}",
                got="a text",
                expected="token ids, because there is no tokenizer.json",
                fix="put tokenizer.json beside the source and convert again, or pass ids",
            )
        return self.tokenizer.encode(text)

    def close(self) -> None:
        """Stops reading and frees the layers. What is left goes with the model. Idempotent."""
        self._pipeline.close()
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
    batch: int = 1,
    micro_batch: int | None = None,
    depth: int | None = None,
    reader: str | None = None,
    cache: PartCache | None = None,
    timeline: Timeline | None = None,
    mesh: Mesh | None = None,
    peers: Peers | None = None,
) -> Model:
    """Opens a converted model and places its records.

    device_memory, host_memory: budgets ("8GiB" or bytes), by default 90 % of what is free. context: most
    tokens of prompt and generation together, by default the model's own limit, at most 2048. batch: most
    sequences under way at once in `complete_batch`. micro_batch: most of them that one step takes; by default
    32. While a layer is on the device they all pass through it, one micro-batch after another; where their
    caches do not fit on the device, those wait in host memory. depth: records whose transfer is issued ahead,
    by default 2, or 1 where only that fits. reader: "preadv", "direct", "mmap" or "tensorstore"; by default
    what was measured to be best on this disk. cache: of an object store, where its parts are kept on a local
    disk, and how many bytes of them. timeline: collects what each stage does and when (`endor
    trace`). mesh: of one axis, whose devices share every layer: each reads, transfers and keeps its own parts
    (`convert(shards=)`), and device_memory is that of each. Of two axes, for a pipeline: each row has some of
    the layers, which its devices share, and `batch` is spread over as many lanes as there are stages, rounded
    up; host_memory is shared by the stages of this process. Where it spans processes, all of them load the
    model and then make the same calls; peers (`endor.join`) sees to it that none waits for one that is gone.
    Raises NotFoundError, CorruptCheckpointError, DoesNotFitError (with the smallest plan), InvalidInputError,
    StorageError for an object store that cannot be reached.
    """
    if mesh is not None:
        mesh = plain_mesh(mesh, peers=peers)
    elif peers is not None:
        raise InvalidInputError(
            "peers",
            got="no mesh with them",
            expected="mesh=, of devices of all processes",
            fix='make it with jax.make_mesh((N,), ("model",))',
        )
    staged = {0: one_device(default_device())} if mesh is None else stages_over(mesh, peers=peers)
    checkpoint = Checkpoint(path, reader=reader, cache=cache)
    manifest = checkpoint.manifest
    decoder = models.decoder(models.from_hf(checkpoint.model_config()))
    check_records(checkpoint.path, manifest, decoder)
    count = 1 if mesh is None or len(mesh.axis_names) == 1 else mesh.devices.shape[0]
    shape = lane_shape(
        checkpoint, decoder, staged, stages=count, context=context, batch=batch, micro_batch=micro_batch
    )
    placed = place_stages(
        checkpoint,
        staged,
        shape=shape,
        count=count,
        device_memory=device_memory,
        host_memory=host_memory,
        depth=depth,
    )
    prediction = None
    if count == 1:  # what stages tell each other was not measured
        (only,) = placed.values()
        choice = checkpoint.reader_choice
        costs = costs_of(manifest, only.shape, choice=choice, devices=only.devices, link=only.link)
        prediction = None if costs is None else predict(only.plan, costs)
    plans = [each.plan for each in placed.values()]
    expected = expected_peak_bytes(*plans) + checkpoint.fetch_bytes
    # Those of parts are checked when the parts are read. What the manifest does not list means nothing.
    files = {name: checkpoint.read_file(name) for name in manifest.kept_files}
    tokenizer = tokenizer_of(files, checkpoint.path) if "tokenizer.json" in files else None
    exchange = None if mesh is None or count == 1 else Exchange(mesh, peers)
    pipeline = make_pipeline(checkpoint, decoder, placed, exchange=exchange, timeline=timeline)
    return Model(checkpoint, pipeline, tokenizer, expected_peak_host_bytes=expected, prediction=prediction)
