"""The pipeline: passes of several lanes on their way through the stages of a model, tick by tick.

A lane is a group of sequences with caches of its own. In a tick every stage takes one lane through its layers
while the other lanes are in the other stages (Huang et al. 2019, "GPipe", arXiv 1811.06965, with whole groups
of sequences for micro-batches, because a layer that was streamed has to serve all rows of its group). A model
that is in one place is a pipeline of one stage, in which every tick is a whole pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from endor_jax.arrays import dtype_from_name
from endor_jax.generate.caches import Caches
from endor_jax.generate.embedding import check_ids
from endor_jax.generate.exchange import Exchange
from endor_jax.generate.placement import Geometry
from endor_jax.generate.runner import Feed, Runner, advance_stage, check_length, embedded, received
from endor_jax.generate.statistics import Meter
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.plan import Plan


@dataclass(frozen=True)
class Pipeline:
    """The stages of this process, by their number in the pipeline, and what carries x between all stages.

    exchange: None for a single stage.
    """

    stages: Mapping[int, Runner]
    exchange: Exchange | None = None

    @property
    def count(self) -> int:
        """How many stages there are, those of other processes too."""
        return 1 if self.exchange is None else self.exchange.mesh.devices.shape[0]

    @property
    def ends_here(self) -> bool:
        """Whether the last stage is in this process."""
        return self.count - 1 in self.stages

    @property
    def runner(self) -> Runner:
        """The first of this process's stages: the one that is asked what all have in common."""
        return next(iter(self.stages.values()))

    @property
    def shape(self) -> Geometry:
        """That of a lane."""
        return self.runner.shape

    @property
    def lanes(self) -> int:
        """The most that are under way at once."""
        return self.shape.lanes

    @property
    def executors(self) -> tuple[Executor, ...]:
        """Those of this process's stages."""
        return tuple(runner.executor for runner in self.stages.values())

    @property
    def plans(self) -> dict[int, Plan]:
        """Of each of this process's stages, by number."""
        return {number: runner.executor.plan for number, runner in self.stages.items()}

    def new_caches(self, sequences: int = 1) -> dict[int, Caches]:
        """Empty caches of a lane in every stage of this process."""
        return {number: runner.new_caches(sequences) for number, runner in self.stages.items()}

    def hand_on(
        self, given: Mapping[int, Shaped[np.ndarray, "tokens hidden"]], tokens: int
    ) -> dict[int, Shaped[np.ndarray, "most hidden"]]:
        """x of at most `tokens` tokens from each stage to the next: what those here have got, by number."""
        if self.exchange is None or not tokens:
            return {}
        dtype = dtype_from_name(self.shape.dtype)
        like = np.empty((0, self.shape.config.hidden_size), dtype)
        return self.exchange.hand_on(given, tokens, like=like)

    def tell_all(
        self, said: Float[np.ndarray, "rows width"] | None, rows: int, width: int
    ) -> Float[np.ndarray, "{rows} {width}"]:
        """Float32 results of the last stage, in every process; None where that stage is not."""
        if self.exchange is None:
            assert said is not None  # by the only stage
            return said
        return self.exchange.tell_all(said, rows, like=np.empty((0, width), np.float32))

    def close(self) -> None:
        """Stops reading and frees the layers. Idempotent."""
        for runner in self.stages.values():
            runner.close()


@dataclass
class Pass:
    """Feeds of one lane on their way through the stages, and the caches of the lane in those that are here.

    x: what the stage before gave for all their tokens, where the stage that comes next is in this process.
    """

    caches: Mapping[int, Caches]
    feeds: Sequence[Feed]
    x: Shaped[np.ndarray, "tokens hidden"] | None = None

    @property
    def tokens(self) -> int:
        """Of all feeds."""
        return sum(len(feed.ids) for feed in self.feeds)


def tick(
    pipeline: Pipeline, under_way: Sequence[Pass | None]
) -> Float[np.ndarray, "feeds vocabulary"] | None:
    """Takes under_way[s] through stage s, for every stage; what they give goes to the next stage.

    Logits of the pass that was in the last stage, in every process; None if there was none. Processes without
    a pass in their stages only take part in the exchange. Raises InvalidInputError for a new pass with feeds
    that cannot be, in every process.
    """
    if under_way[0] is not None:
        check_feeds(pipeline, under_way[0].feeds)
    results = {}
    for number, runner in pipeline.stages.items():
        own = under_way[number]
        if own is not None:
            entering = embedded(runner) if own.x is None else received(own.feeds, own.x)
            results[number] = advance_stage(runner, own.caches[number], own.feeds, entering)
            own.x = None
    *others, last = under_way
    said = results.pop(pipeline.count - 1, None)
    logits = None
    if last is not None:
        logits = pipeline.tell_all(said, len(last.feeds), pipeline.shape.config.vocabulary_size)
    most = max((each.tokens for each in others if each is not None), default=0)
    for number, x in pipeline.hand_on(results, most).items():
        coming = under_way[number - 1]
        if coming is not None:
            coming.x = x
    return logits


def run_pass(pipeline: Pipeline, only: Pass) -> Float[np.ndarray, "feeds vocabulary"]:
    """One pass through all stages while nothing else is under way: logits after the last token of each feed.

    Raises as `tick` does.
    """
    logits = None
    for number in range(pipeline.count):
        logits = tick(pipeline, [only if stage == number else None for stage in range(pipeline.count)])
    assert logits is not None  # from the last stage
    return logits


def meter_of(pipeline: Pipeline) -> Meter:
    """Adds up what the stages of this process do from now on."""
    # The first token is in a stage that compiles for so many ticks.
    return Meter(pipeline.executors, pipeline.runner.devices.first, compiling=pipeline.count)


def check_feeds(pipeline: Pipeline, feeds: Sequence[Feed]) -> None:
    """Raises InvalidInputError for feeds that cannot be: in every process, also where nobody looks at ids."""
    for feed in feeds:
        check_length(pipeline.runner, feed.start, len(feed.ids))
        check_ids(feed.ids, pipeline.shape.config.vocabulary_size)
