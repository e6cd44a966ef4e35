"""Flax Linen models whose blocks are streamed: the model's own code runs, each block's call is a jitted step.

Linen hands every method of every submodule to interceptors. Ours lets all calls through but those of blocks:
in their place runs `step(record, collections, arguments)`, in which the block, alone, is applied to its
expanded parameters. The model itself is applied without them, and does not miss them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import flax.core
import jax
import numpy as np
from flax import linen as nn

from endor_jax.adapters.functions import Functions
from endor_jax.adapters.linen_step import Call, plain, step
from endor_jax.adapters.patterns import matching
from endor_jax.adapters.stack import Stack, check_hashable, save_stack
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.record import Record
from endor_jax.store.manifest import Manifest
from endor_jax.streaming.plan import Plan
from endor_jax.streaming.step import is_traced


def save_linen(
    path: str | os.PathLike[str],
    variables: Mapping[str, Any],
    *,
    blocks: str | Sequence[str],
    values: str = "auto",
) -> Manifest:
    """Writes a model's variables to a checkpoint that `stream_linen` runs: a record per block, and the rest.

    variables: what `model.init` gives, {"params": ..., other collections}. blocks: which modules are
    streamed, in the order of their calls, as patterns of dotted paths: "block_*",
    ["encoder.layers_*", "decoder.layers_*"]. Their parameters make a record each; other collections belong to
    the rest. values: as `endor.save` takes it.
    Raises what `endor.save` raises, and InvalidInputError for blocks that are not there or not a stack, or
    for variables that are no dicts of arrays.
    """
    rest = plain(variables)
    params = rest.get("params")
    if not isinstance(params, dict):
        raise InvalidInputError(
            "save_linen",
            got=f"variables with {', '.join(rest) or 'nothing'}",
            expected='a dict with "params"',
            fix="pass what model.init gives, not its params alone",
        )
    names = matching(_module_paths(params), blocks)
    trees = {name: _taken_out(params, name.split(".")) for name in names}
    return save_stack(path, trees, rest, values=values, by="save_linen")


def stream_linen(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    device_memory: str | int | None = None,
    host_memory: str | int | None = None,
    depth: int | None = None,
    reader: str | None = None,
) -> StreamedLinen:
    """Opens a checkpoint that `save_linen` wrote, for the model whose variables they are.

    The budgets, depth and reader are those of `endor.stream`; the device's holds the rest of the model too.
    Raises NotFoundError, CorruptCheckpointError, DoesNotFitError, InvalidInputError.
    """
    stack = Stack(
        path,
        by="save_linen",
        device_memory=device_memory,
        host_memory=host_memory,
        depth=depth,
        reader=reader,
    )
    return StreamedLinen(stack, model)


class StreamedLinen:
    """A model whose blocks are streamed; made by `stream_linen`.

    variables: all but the parameters of the blocks, to be passed to `apply`, with other collections if need
    be: `run.variables | {"cache": cache}`.
    """

    def __init__(self, stack: Stack, model: nn.Module):
        self._stack, self._model = stack, model
        self.variables: dict[str, Any] = {"params": {}} | stack.rest
        self._index = {tuple(name.split(".")): index for index, name in enumerate(stack.names)}
        self._step = jax.jit(step, static_argnames="call")
        self._functions = Functions()
        self._in_a_step = False
        self._root: flax.core.Scope | None = None  # of the call of `apply` that is under way
        self._is_traced = False  # the same call's arguments

    @property
    def plan(self) -> Plan:
        """Where the blocks are."""
        return self._stack.plan

    @property
    def bytes_read(self) -> int:
        """Bytes of blocks read from disk for the passes so far, as `Stream.bytes_read` counts them."""
        return self._stack.bytes_read

    @property
    def bytes_transferred(self) -> int:
        """Bytes of blocks moved to the device for the passes so far."""
        return self._stack.bytes_transferred

    def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """`model.apply` of the same arguments, with streamed blocks; to be called outside jit.

        Other options of `apply` (mutable, method) mean what they do there. Raises UnsupportedError for a
        block that draws random numbers or changes its parameters, for capture_intermediates, inside a JAX
        transformation, and for blocks that the model transforms (nn.remat, nn.jit).
        """
        if kwargs.get("capture_intermediates"):
            raise UnsupportedError(
                "streamed model",
                got="capture_intermediates",
                expected="no look into blocks",
                fix="sow what is wanted, and pass mutable=['intermediates']",
            )
        self._root, self._is_traced = None, is_traced((variables, args, kwargs))
        with nn.intercept_methods(self._intercept):
            return self._model.apply(variables, *args, **kwargs)

    def close(self) -> None:
        """Stops reading and frees the buffers. Idempotent."""
        self._stack.close()

    def __enter__(self) -> StreamedLinen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _intercept(
        self, proceed: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        """Linen's protocol for interceptors: what is returned is what the method gives."""
        module = context.module
        index = self._index_of(module)
        if index is None:
            return proceed(*args, **kwargs)
        if context.method_name == "setup":  # which may ask for parameters
            return None
        return self._call(index, module, context.method_name, args, kwargs)

    def _index_of(self, module: nn.Module) -> int | None:
        """Which block a module is; None for all others."""
        # While a step is compiled its own submodules come by here too, with paths that begin at the block.
        if self._in_a_step or module.scope is None:
            return None
        if self._root is None:
            self._root = module.scope.root
        index = self._index.get(module.path)
        if index is not None and module.scope.root is not self._root:
            # Another model inside this one has parameters of its own; a transformation's scopes have none.
            return None if module.is_initializing() or module.variables.get("params") else index
        return index

    def _call(self, index: int, module: nn.Module, method: str, args: Any, kwargs: Any) -> Any:
        """A method of a block, as a step on its record; what it changes of collections is written back."""
        assert module.scope is not None
        leaves, structure = jax.tree.flatten((args, kwargs))
        dynamic = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
        arrays = [leaf for leaf, mine in zip(leaves, dynamic, strict=True) if mine]
        static = tuple(None if mine else leaf for leaf, mine in zip(leaves, dynamic, strict=True))
        call = Call(
            self._stack.names[index],
            self._alone(module),
            method,
            _without_params(module.scope.mutable),
            structure,
            tuple(dynamic),
            static,
            tuple(sorted(module.scope.rngs)),
            self._stack.signatures[index],
        )
        check_hashable(call, call.name, expected="arrays, or values that compare and hash")
        collections = {name: held for name, held in plain(module.variables).items() if name != "params"}
        if is_traced((collections, arrays)) and not self._is_traced:
            raise _transformed_error(call.name)

        def step(record: Record, collections: Any, arrays: Any) -> Any:
            self._in_a_step = True
            try:
                return self._step(record, collections, arrays, call=call)
            finally:
                self._in_a_step = False

        result, changed = self._stack.apply(index, step, collections, arrays)
        for collection, held in changed.items():
            for name, value in held.items():
                module.scope.put_variable(collection, name, value)
        return result

    def _alone(self, module: nn.Module, name: str | None = None) -> nn.Module:
        """A block, or a module in a field of one, without parent: equal blocks then compare equal."""
        fields = {}
        for own in dataclasses.fields(module):
            if own.init and own.name not in ("parent", "name"):
                held = getattr(module, own.name)
                fields[own.name] = jax.tree.map(self._held_alone, held, is_leaf=_is_module)
        return module.clone(parent=None, name=name, **fields)

    def _held_alone(self, value: Any) -> Any:
        """A part of what a field of a block holds: modules by themselves, and one of all equal functions."""
        return self._alone(value, value.name) if _is_module(value) else self._functions.one(value)


def _is_module(value: Any) -> bool:
    return isinstance(value, nn.Module)


def _without_params(mutable: Any) -> Any:
    """The same filter of collections, hashable; parameters are read again for every call."""
    if mutable is True or isinstance(mutable, flax.core.DenyList):
        denied = () if mutable is True else _named(mutable.deny)
        return flax.core.DenyList(tuple(sorted({*denied, "params"})))
    names = tuple(sorted({*_named(mutable)} - {"params"}))
    return names or False


def _named(collections: Any) -> tuple[str, ...]:
    if collections is False:
        return ()
    return (collections,) if isinstance(collections, str) else tuple(collections)


def _transformed_error(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"streamed block {name}",
        got="a call inside a transformation that the model makes (nn.remat, nn.jit, nn.cond)",
        expected="one outside: its weights are read while the model runs",
        fix="make the model that is streamed without it, as its configuration may allow (remat=False): "
        "blocks are compiled in any case, and nothing is kept of them for gradients",
    )


def _module_paths(params: Mapping[str, Any]) -> list[str]:
    """Dotted paths of all modules that have parameters, the outer ones first."""
    paths: list[str] = []
    for name, held in params.items():
        if isinstance(held, Mapping):
            paths += [name, *(f"{name}.{path}" for path in _module_paths(held))]
    return paths


def _taken_out(params: dict[str, Any], path: Sequence[str]) -> Any:
    """Removes and returns the parameters of a module."""
    for name in path[:-1]:
        params = params[name]
    return params.pop(path[-1])
