"""Many prompts through one pass: sequences of different length share every record that is read.

A row of the cache is given to the next prompt as soon as its sequence ends, in the very pass in which the
others go on (Yu et al. 2022, "Orca", OSDI: iteration-level scheduling).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from endor_jax.generate.continuation import Continuation, Wishes, agree_on
from endor_jax.generate.runner import Runner, advance
from endor_jax.generate.statistics import Meter
from endor_jax.text import Tokenizer


def generate_batch(
    runner: Runner,
    tokenizer: Tokenizer | None,
    prompts: Sequence[Sequence[int]],
    *,
    wishes: Wishes,
    meter: Meter,
    after_pass: Callable[[], None],
) -> Iterator[tuple[int, Continuation, str]]:
    """Yields (index of the prompt, its sequence, its text) as sequences end.

    Each is sampled with its own generator from the same seed, so what it becomes does not depend on the
    others. At most `runner.shape.sequences` are under way at once, in micro-batches.
    """
    waiting = deque(enumerate(prompts))
    active: dict[int, tuple[int, Continuation, list[str]]] = {}
    rows = min(runner.shape.sequences, len(prompts))
    if not rows:
        return
    agree_on(runner, prompts, wishes)
    caches = runner.new_caches(rows)
    while waiting or active:
        clock, entered = time.perf_counter(), 0
        for row in range(rows):
            if waiting and row not in active:
                index, ids = waiting.popleft()
                active[row] = index, Continuation(tokenizer, ids, wishes=wishes), []
                entered += len(ids)
        feeds = [sequence.feed(row) for row, (_, sequence, _) in active.items()]
        logits = advance(runner, caches, feeds)
        for (_, sequence, pieces), own in zip(active.values(), logits, strict=True):
            pieces.append(sequence.accept(own).text)
        seconds = time.perf_counter() - clock
        if entered:
            meter.prompt_pass(entered, len(feeds), seconds)
        else:
            meter.token_pass(len(feeds), seconds)
        after_pass()
        ended = {row: item for row, item in active.items() if item[1].finish_reason is not None}
        for row, (index, sequence, pieces) in ended.items():
            del active[row]
            yield index, sequence, "".join(pieces)
