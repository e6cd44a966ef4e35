"""The blocks of a model in a checkpoint: saved with the rest of the model, reached one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.record import Record
from endor_jax.format.tree import rebuild
from endor_jax.kernels.expand.api import expand_all
from endor_jax.store.manifest import Manifest, Signature
from endor_jax.store.reader import Checkpoint
from endor_jax.store.save import save_records
from endor_jax.streaming.api import open_executor
from endor_jax.streaming.budget import default_device
from endor_jax.streaming.plan import Plan
from endor_jax.streaming.step import refuse_traced
from endor_jax.streaming.turn import Turn

REST = "rest"
"""The last record: all of the model but the parameters of its blocks."""


def save_stack(
    path: str | os.PathLike[str], blocks: Mapping[str, Any], rest: Any, *, values: str, by: str
) -> Manifest:
    """Writes a record per block, called as its module, and one for the rest of the model.

    blocks: parameter trees of dicts by dotted path; rest: another one. by: the function that was called.
    Raises as `endor.save` does.
    """
    if REST in blocks:
        raise InvalidInputError(
            by, got=f"a block called {REST!r}", expected="another name", fix="rename that module"
        )
    return save_records(path, [*blocks.items(), (REST, rest)], values=values, by=by)


class Stack:
    """The blocks of a checkpoint that `save_stack` wrote, streamed; `close` is idempotent.

    names: dotted paths of the modules, in the order of the stream. rest: the rest of the model, dense, on the
    device. Their order is the fast one: asking for an earlier block begins another pass over the records.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        by: str,
        device_memory: str | int | None = None,
        host_memory: str | int | None = None,
        depth: int | None = None,
        reader: str | None = None,
    ):
        """Reads the rest and what stays in memory. by: the function that has written it.

        Raises NotFoundError, CorruptCheckpointError, DoesNotFitError, and InvalidInputError for a checkpoint
        of something else.
        """
        self._checkpoint = Checkpoint(path, reader=reader)
        manifest = self._checkpoint.manifest
        if manifest.made.get("by") != f"endor_jax.{by}":
            raise InvalidInputError(
                f"checkpoint {path}",
                got=f"one written by {manifest.made.get('by', 'something else')}",
                expected=f"one written by endor_jax.{by}",
                fix=f"write it with {by}; endor.stream runs what endor.save wrote",
            )
        *blocks, rest = manifest.records
        self.names = tuple(block.name for block in blocks)
        self.signatures: tuple[Signature, ...] = tuple(manifest.signatures[b.signature] for b in blocks)
        self._device = default_device()
        layout = manifest.layout(rest)
        self._executor = open_executor(
            self._checkpoint,
            blocks,
            device=self._device,
            fixed=(("rest of the model", layout.dense_bytes),),
            device_memory=device_memory,
            host_memory=host_memory,
            depth=depth,
        )
        signature = manifest.signatures[rest.signature]
        try:
            words = jax.device_put(self._checkpoint.read_record(rest), self._device)
            self.rest = jax.jit(lambda record: dense_params(record, signature))(words)
        except BaseException:
            self._executor.close()
            raise
        self._turns: Iterator[Turn] = iter(())
        self._turn: Turn | None = None

    @property
    def plan(self) -> Plan:
        """Where the blocks are."""
        return self._executor.plan

    @property
    def bytes_read(self) -> int:
        """Bytes of blocks read from disk for the passes so far, as `Stream.bytes_read` counts them."""
        return self._executor.bytes_read

    @property
    def bytes_transferred(self) -> int:
        """Bytes of blocks moved to the device for the passes so far."""
        return self._executor.bytes_transferred

    def apply(self, index: int, step: Callable[..., Any], *operands: Any) -> Any:
        """step(record, *operands) with the record of a block; operands are moved to the device before.

        Records before it that were not asked for pass by. Raises UnsupportedError inside a JAX
        transformation, StreamError after `close`, and what a read raises.
        """
        refuse_traced(operands, self.names[index])
        # Arrays that steps give are committed to the device: others would compile the step once more.
        return self._reach(index).apply(step, *jax.device_put(operands, self._device))

    def _reach(self, index: int) -> Turn:
        if self._turn is None or index < self._turn.index:
            self._turns = self._executor.turns()
            self._turn = next(self._turns)
        while self._turn.index < index:
            self._turn = next(self._turns)
        return self._turn

    def close(self) -> None:
        """Stops reading and frees the buffers; what the model computed stays. Idempotent."""
        self._turn, self._turns = None, iter(())
        self._executor.close()
        self._checkpoint.close()


def dense_params(record: Record, signature: Signature) -> Any:
    """Inside a step: the parameter tree of a block, expanded."""
    return rebuild(signature.tree, expand_all(record))


def check_hashable(call: Any, name: str, *, expected: str) -> None:
    """Raises UnsupportedError for a call of a block with what can neither be traced nor be static."""
    try:
        hash(call)
    except TypeError as error:
        raise UnsupportedError(
            f"streamed block {name}",
            got=f"an argument or attribute that is no array and cannot be hashed ({error})",
            expected=expected,
            fix="pass it as an array, or as a tuple instead of a list",
        ) from error
