"""`stream`, the public way to run any JAX layer function over a checkpoint that does not fit."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax

from endor_jax.errors import InvalidInputError
from endor_jax.format.record import Record
from endor_jax.format.tree import rebuild, rebuild_like
from endor_jax.store.manifest import Signature, StoredRecord
from endor_jax.store.reader import Checkpoint
from endor_jax.store.remote.cache import PartCache
from endor_jax.streaming.budget import budgets, default_device
from endor_jax.streaming.devices import one_device
from endor_jax.streaming.executor import Executor
from endor_jax.streaming.link import choose_link
from endor_jax.streaming.plan import FixedCosts, make_plan
from endor_jax.streaming.step import LayerFunction, make_step, refuse_traced
from endor_jax.streaming.streamable import Streamable
from endor_jax.streaming.transfer import Device, shares_memory
from endor_jax.streaming.turn import Turn


class Layer:
    """A layer whose turn it is, in a pass that the caller walks. Call it with (x, state), or leave it out.

    index: of the layer, from 0. name: of its record.
    """

    def __init__(self, turn: Turn, step: Callable[..., Any], device: Device):
        self.index, self.name = turn.index, turn.name
        self._turn, self._step, self._device = turn, step, device

    def __call__(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        """The next x and the new state. Raises StreamError once the next layer has been asked for, and
        UnsupportedError inside a JAX transformation."""
        operands = jax.device_put((x, state), self._device)
        refuse_traced(operands, self.name)
        return self._turn.apply(self._step, *operands)


class Stream:
    """A layer function bound to a checkpoint; made by `stream`. Call it with (x, states).

    plan: where the records are.
    """

    def __init__(
        self, layer: LayerFunction, checkpoint: Checkpoint, executor: Executor, *, device: Device, like: Any
    ):
        self._checkpoint, self._executor, self._device = checkpoint, executor, device
        self.plan = executor.plan
        # Signatures may agree in their layout and differ in their tree: a list in one, a tuple in another.
        self._steps = [
            make_step(layer, build=functools.partial(_params, signature, like=like))
            for signature in checkpoint.manifest.signatures
        ]

    def __call__(self, x: Any, states: Sequence[Any] | None = None) -> tuple[Any, list[Any]]:
        """Applies all layers in order: returns the last x and the new states.

        x: any pytree. states: one pytree per layer, or None for layers that keep none. Raises
        InvalidInputError if their number is wrong, UnsupportedError inside a JAX transformation, and whatever
        a read raised, with its layer named.
        """
        records = self._checkpoint.manifest.records
        new = list(states) if states is not None else [None] * len(records)
        if len(new) != len(records):
            raise InvalidInputError(
                "stream",
                got=f"{len(new)} states",
                expected=f"{len(records)}, one per layer",
                fix="pass one per layer",
            )

        # Layers give arrays committed to the device: the first must get such too, or it compiles once more.
        x, new = jax.device_put((x, new), self._device)
        refuse_traced((x, new), records[0].name)

        def step(index: int, record: Record) -> Any:
            nonlocal x
            x, new[index] = self._steps[records[index].signature](record, x, new[index])
            return x, new[index]

        self._executor.run(step)
        return x, new

    def layers(self) -> Iterator[Layer]:
        """One pass that the caller walks: all layers in order, each to be called, or not.

        A layer that is not called is not expanded and not applied. It is read and transferred like any other:
        that goes on ahead of the caller, who may choose only when its turn comes. After a loop that was left
        early, the rest is read when the next pass begins. Raises StreamError if another pass has begun.
        """
        records = self._checkpoint.manifest.records
        for turn in self._executor.turns():
            yield Layer(turn, self._steps[records[turn.index].signature], self._device)

    @property
    def bytes_read(self) -> int:
        """Bytes read from disk for the passes so far: what stays, once, and what is streamed, every pass.

        What was read ahead for the next pass counts in that pass.
        """
        return self._executor.bytes_read

    @property
    def bytes_transferred(self) -> int:
        """Bytes moved to the device for the passes so far, counted likewise."""
        return self._executor.bytes_transferred

    def close(self) -> None:
        """Stops reading and frees the buffers. Idempotent."""
        self._executor.close()
        self._checkpoint.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def stream(
    layer: LayerFunction,
    path: str | os.PathLike[str],
    *,
    device_memory: str | int | None = None,
    host_memory: str | int | None = None,
    depth: int | None = None,
    reader: str | None = None,
    cache: PartCache | None = None,
    like: Any = None,
) -> Stream:
    """Opens a checkpoint written by `save` and binds a layer function to it.

    layer: (params, x, state) -> (x, state), pure; params has the structure that was saved, dense, expanded
    inside the jitted step. device_memory, host_memory: budgets for weights ("8GiB"), by default 90 % of what
    is free. depth: records issued ahead, by default 2, or 1 where only that fits. reader, cache: as `load`
    takes them.
    like: a tree of the saved structure, needed only when it holds other containers than dicts, lists and
    tuples (an `nnx.State`).
    Raises NotFoundError, CorruptCheckpointError, DoesNotFitError, InvalidInputError.
    """
    checkpoint = Checkpoint(path, reader=reader, cache=cache)
    device = default_device()
    manifest = checkpoint.manifest
    if like is None and any(signature.tree is None for signature in manifest.signatures):
        raise InvalidInputError(
            f"checkpoint {path}",
            got="parameter trees with containers other than dicts, lists and tuples",
            expected="their structure",
            fix="pass like=, a tree of that structure (jax.eval_shape or nnx.eval_shape gives one)",
        )
    for signature in manifest.signatures:  # better refused here than in the middle of the first pass
        _params(signature, dict.fromkeys(signature.layout.names), like=like)
    executor = open_executor(
        checkpoint,
        manifest.records,
        device=device,
        device_memory=device_memory,
        host_memory=host_memory,
        depth=depth,
    )
    return Stream(layer, checkpoint, executor, device=device, like=like)


def open_executor(
    checkpoint: Checkpoint,
    records: Sequence[StoredRecord],
    *,
    device: Device,
    fixed: tuple[tuple[str, int], ...] = (),
    device_memory: str | int | None = None,
    host_memory: str | int | None = None,
    depth: int | None = None,
) -> Executor:
    """An executor for some records of a checkpoint, in this order, within budgets as `stream` takes them.

    fixed: what else is on the device, and the budget has to hold, by name: bytes.
    Raises DoesNotFitError, and what reading the records that stay in memory raises.
    """
    manifest = checkpoint.manifest
    streamables = [Streamable(r.name, r.parts, manifest.layout(r)) for r in records]
    device_bytes, host_bytes = budgets(device, device_memory, host_memory)
    expanded = max(streamable.layout.dense_bytes for streamable in streamables)
    plan = make_plan(
        [streamable.demand for streamable in streamables],
        fixed=FixedCosts(device=(*fixed, ("expanded layer", expanded))),
        device_budget_bytes=device_bytes,
        host_budget_bytes=host_bytes,
        depth=depth,
        reads=checkpoint.reader_choice.reads,
        shares_memory=shares_memory(device),
        staged=choose_link(device).staged,
    )
    return Executor(checkpoint, streamables, plan=plan, devices=one_device(device))


def _params(signature: Signature, arrays: Mapping[str, Any], *, like: Any) -> Any:
    return rebuild(signature.tree, arrays) if like is None else rebuild_like(like, arrays)
