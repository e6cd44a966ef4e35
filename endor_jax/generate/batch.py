"""Many prompts through one pass: sequences of different length share every record that is read.

A row of the cache is given to the next prompt as soon as its sequence ends, in the very pass in which the
others go on (Yu et al. 2022, "Orca", OSDI: iteration-level scheduling).
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from endor_jax.generate.caches import Caches
from endor_jax.generate.continuation import Continuation, Wishes, agree_on
from endor_jax.generate.pipeline import Pass, Pipeline, tick
from endor_jax.generate.runner import Feed
from endor_jax.generate.statistics import Meter
from endor_jax.text import Tokenizer


@dataclass
class Lane:
    """The rows of one group of caches: what passes next for each, and what becomes of it.

    waiting: prompts without a row, each with its index; shared by all lanes. begin: makes a sequence of one.
    prompt_tokens: of the prompts that came into the latest pass.
    """

    caches: Mapping[int, Caches]
    rows: int
    waiting: deque[tuple[int, Sequence[int]]]
    begin: Callable[[Sequence[int]], Continuation]
    active: dict[int, tuple[int, Continuation, list[str]]] = field(default_factory=dict)
    prompt_tokens: int = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.active and not self.waiting

    def feeds(self) -> list[Feed]:
        """What passes next, in all rows; nothing if no prompt is left."""
        self.prompt_tokens = 0
        for row in range(self.rows):
            if self.waiting and row not in self.active:
                index, ids = self.waiting.popleft()
                self.active[row] = index, self.begin(ids), []
                self.prompt_tokens += len(ids)
        return [sequence.feed(row) for row, (_, sequence, _) in self.active.items()]

    def accept(self, logits: Float[np.ndarray, "feeds vocabulary"]) -> list[tuple[int, Continuation, str]]:
        """Chooses the next tokens by the latest feeds' logits: sequences that end, with index and text."""
        for (_, sequence, pieces), own in zip(self.active.values(), logits, strict=True):
            pieces.append(sequence.accept(own).text)
        ended = {row: item for row, item in self.active.items() if item[1].finish_reason is not None}
        for row in ended:
            del self.active[row]
        return [(index, sequence, "".join(pieces)) for index, sequence, pieces in ended.values()]


@dataclass(frozen=True)
class Turn:
    """A tick: lanes that were in a stage, the one that came into the first, and the one that left the last,
    with the logits of its feeds."""

    lanes: tuple[int, ...]
    entering: int | None
    leaving: int | None
    logits: Float[np.ndarray, "feeds vocabulary"] | None


def take_turns(pipeline: Pipeline, lanes: Sequence[Lane]) -> Iterator[Turn]:
    """Ticks until all lanes are done: lane k is in stage s whenever tick - s - k is a multiple of the stages.

    At most as many lanes as stages. The caller has a lane accept its logits before it asks for the next turn.
    """
    count = pipeline.count
    stages: deque[tuple[int, Pass] | None] = deque([None] * count, maxlen=count)
    for number in itertools.count():
        lane = number % count
        feeds = lanes[lane].feeds() if lane < len(lanes) else []
        stages.appendleft((lane, Pass(lanes[lane].caches, feeds)) if feeds else None)
        under_way = [each for each in stages if each is not None]
        if under_way:
            logits = tick(pipeline, [None if each is None else each[1] for each in stages])
            entering, leaving = (None if each is None else each[0] for each in (stages[0], stages[-1]))
            yield Turn(tuple(own for own, _ in under_way), entering, leaving, logits)
        elif all(each.done for each in lanes):
            return


def generate_batch(
    pipeline: Pipeline,
    tokenizer: Tokenizer | None,
    prompts: Sequence[Sequence[int]],
    *,
    wishes: Wishes,
    meter: Meter,
    after_pass: Callable[[], None],
) -> Iterator[tuple[int, Continuation, str]]:
    """Yields (index of the prompt, its sequence, its text) as sequences end.

    Each is sampled with its own generator from the same seed, so what it becomes does not depend on the
    others. At most `pipeline.shape.sequences` are under way at once in every lane, in micro-batches.
    """
    if not prompts:
        return
    agree_on(pipeline.runner, prompts, wishes)
    count = min(pipeline.lanes, len(prompts))
    rows = min(pipeline.shape.sequences, -(-len(prompts) // count))
    waiting, begin = deque(enumerate(prompts)), functools.partial(Continuation, tokenizer, wishes=wishes)
    lanes = [Lane(pipeline.new_caches(rows), rows, waiting, begin) for _ in range(count)]
    turns = take_turns(pipeline, lanes)
    while True:
        clock = time.perf_counter()
        turn = next(turns, None)
        if turn is None:
            return
        ended, tokens = [], 0
        if turn.leaving is not None and turn.logits is not None:
            ended, tokens = lanes[turn.leaving].accept(turn.logits), len(turn.logits)
        seconds = time.perf_counter() - clock
        if any(lanes[lane].prompt_tokens for lane in turn.lanes):
            entered = 0 if turn.entering is None else lanes[turn.entering].prompt_tokens
            meter.prompt_pass(entered, tokens, seconds)
        else:
            meter.token_pass(tokens, seconds)
        after_pass()
        yield from ended
