"""Pipeline stages: which successive layers each has, and what stands before all layers and behind them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from endor_jax.errors import InvalidInputError
from endor_jax.store.manifest import Manifest


@dataclass(frozen=True)
class PipelineStage:
    """Successive layers of a model, on devices of their own.

    first: the embedding and the stem are there too. last: the final part and the head are. A model that is
    in one place is a single stage, both first and last.
    """

    layers: range
    first: bool = True
    last: bool = True

    @property
    def alone(self) -> bool:
        """Whether it is the whole model."""
        return self.first and self.last


def stages_of(manifest: Manifest, count: int, *, head: str) -> tuple[PipelineStage, ...]:
    """The layers of a checkpoint in `count` stages, as even as its stored bytes allow.

    head: the record that the output head is stored in. Raises InvalidInputError for fewer layers than stages.
    """
    sizes = [record.stored_bytes for record in manifest.records if record.name.startswith("layers.")]
    if not 1 <= count <= len(sizes):
        raise InvalidInputError(
            "mesh",
            got=f"{count} pipeline stages",
            expected=f"1 to {len(sizes)}, the layers of the model",
            fix="take fewer stages, with more devices each",
        )
    ranges = layer_ranges(sizes, count, head_bytes=manifest.record(head).stored_bytes)
    return tuple(PipelineStage(layers, first=i == 0, last=i == count - 1) for i, layers in enumerate(ranges))


def layer_ranges(layer_bytes: Sequence[int], count: int, *, head_bytes: int = 0) -> tuple[range, ...]:
    """`count` successive ranges of layers, none empty, behind the last of which the head comes.

    The largest is as small as can be, for the others wait for it; among such splits the squares of the sizes
    have the smallest sum.
    """
    before = [0, *itertools.accumulate(layer_bytes)]

    def size(first: int, end: int) -> int:
        return before[end] - before[first] + (head_bytes if end == len(layer_bytes) else 0)

    largest, _ = _cheapest(len(layer_bytes), count, size, max)
    forbidden = count * (before[-1] + head_bytes) ** 2 + 1  # more than any split costs

    def square(first: int, end: int) -> int:
        return size(first, end) ** 2 if size(first, end) <= largest else forbidden

    _, cuts = _cheapest(len(layer_bytes), count, square, operator.add)
    return tuple(range(first, end) for first, end in itertools.pairwise(cuts))


def _cheapest(
    layers: int, count: int, cost: Callable[[int, int], int], join: Callable[[int, int], int]
) -> tuple[int, tuple[int, ...]]:
    """What the cheapest split into `count` ranges costs, joined, and its cuts 0 < ... < layers; by dynamic
    programming over the number of ranges."""
    best = {end: (cost(0, end), (0, end)) for end in range(1, layers + 1)}
    for ranges in range(2, count + 1):
        best = {
            end: min(
                (join(best[cut][0], cost(cut, end)), (*best[cut][1], end)) for cut in range(ranges - 1, end)
            )
            for end in range(ranges, layers + 1)
        }
    return best[layers]
