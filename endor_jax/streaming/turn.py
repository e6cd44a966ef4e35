"""A turn: one record of a pass that its caller walks, usable until the next one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from endor_jax.errors import StreamError
from endor_jax.format.record import Record
from endor_jax.streaming.schedule import Action
from endor_jax.streaming.step import refuse_traced


class Turn:
    """A record on the device; afterwards its memory is written again, and whoever comes too late is told so.

    index: of the record in its pass. name: of the record. results: what is being computed from it, which is
    waited for before its memory is written again.
    """

    def __init__(self, index: int, name: str, record: Record):
        self.index, self.name = index, name
        self.results: list[Any] = []
        self._record: Record | None = record

    def apply(self, step: Callable[..., Any], *operands: Any) -> Any:
        """step(record, *operands). Raises StreamError after the turn, UnsupportedError if that is traced."""
        if self._record is None:
            raise StreamError(
                f"record {self.name}",
                got="a call after its turn",
                expected="one before the next layer of the pass is asked for",
                fix="call a layer inside the loop that gives it",
            )
        result = step(self._record, *operands)
        refuse_traced(result, self.name)  # of a step that closes over something traced
        # Only what is not computed yet uses the record; a loop may call a layer without end.
        self.results[:] = [each for each in self.results if not _is_ready(each)]
        self.results.append(result)
        return result

    def end(self) -> None:
        """Lets go of the record. Idempotent."""
        self._record = None


def _is_ready(result: Any) -> bool:
    arrays = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]
    return all(array.is_deleted() or array.is_ready() for array in arrays)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class Walk:
    """A pass that its caller walks: the actions that are left, when it began, whose turn it is."""

    actions: Iterator[Action]
    start_seconds: float
    turn: Turn | None = None


def no_step(index: int, record: Record) -> None:
    """For actions that are no steps."""
