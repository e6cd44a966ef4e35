"""Flax NNX models whose blocks are streamed: the model's own code runs, each block's call is a jitted step.

`stream_nnx` makes a copy of the model whose blocks have no weights and are instances of a subclass: a call of
one of their methods is `step(record, state, arguments)`, in which a block of the original class is put
together from expanded weights. The model that was given, and its classes, are left alone.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from endor_jax.adapters.functions import Functions
from endor_jax.adapters.nnx_step import Call, split_call, step
from endor_jax.adapters.nnx_variables import (
    check_same,
    key_impl,
    leaves_of,
    modules_of,
    params_of,
    plain_arrays,
    refuse_shared,
    shared_error,
    stored_value,
    value_of,
)
from endor_jax.adapters.patterns import matching
from endor_jax.adapters.stack import Stack, check_hashable, save_stack
from endor_jax.adapters.streamed_parameter import StreamedParameter
from endor_jax.errors import UnsupportedError
from endor_jax.store.manifest import Manifest
from endor_jax.streaming.plan import Plan
from endor_jax.streaming.step import traced_error


def save_nnx(
    path: str | os.PathLike[str], model: nnx.Module, *, blocks: str | Sequence[str], values: str = "auto"
) -> Manifest:
    """Writes a model to a checkpoint that `stream_nnx` runs: a record per block, and the rest of it.

    blocks: which modules are streamed, in the order of their calls, as patterns of dotted paths: "blocks.*",
    "layer*", ["encoder.layers.*", "decoder.layers.*"]. A block's parameters (`nnx.Param`) make its record;
    its other variables (statistics, caches, random states) belong to the rest. values: as `endor.save` takes
    it.
    Raises what `endor.save` raises, InvalidInputError for blocks that are not there or not a stack,
    UnsupportedError for parameters that a block shares with another module.
    """
    modules = modules_of(model)
    names = matching([name for name in modules if name], blocks)
    refuse_shared(modules, names)
    rest = leaves_of(nnx.state(model))
    trees: dict[str, dict[str, Any]] = {}
    for block in names:
        trees[block] = {name: stored_value(leaf) for name, (_, leaf) in params_of(modules[block]).items()}
        for name in trees[block]:
            if rest.pop(f"{block}.{name}", None) is None:  # the model has it by another path
                raise shared_error(block, name)
    return save_stack(
        path,
        trees,
        {name: stored_value(leaf) for name, (_, leaf) in rest.items()},
        values=values,
        by="save_nnx",
    )


def stream_nnx(
    model: nnx.Module,
    path: str | os.PathLike[str],
    *,
    device_memory: str | int | None = None,
    host_memory: str | int | None = None,
    depth: int | None = None,
    reader: str | None = None,
) -> StreamedNnx:
    """Opens a checkpoint that `save_nnx` wrote, for a model of the same structure.

    model: an instance, or what `nnx.eval_shape(lambda: Model(...))` gives: every value comes from the
    checkpoint, only the structure is the model's. The budgets, depth and reader are those of `endor.stream`;
    the device's holds the rest of the model too. Raises NotFoundError, CorruptCheckpointError,
    DoesNotFitError, InvalidInputError where model and checkpoint differ.
    """
    stack = Stack(
        path,
        by="save_nnx",
        device_memory=device_memory,
        host_memory=host_memory,
        depth=depth,
        reader=reader,
    )
    try:
        return StreamedNnx(stack, model)
    except BaseException:
        stack.close()
        raise


class StreamedNnx:
    """A model whose blocks are streamed; made by `stream_nnx`.

    model: of the class that was given, to be called like any other, outside jit. Its variables, other than
    the parameters of blocks, are arrays as usual; what blocks change of theirs is there after the call.
    """

    def __init__(self, stack: Stack, model: nnx.Module):
        self._stack = stack
        self.model = _from_rest(model, stack)
        modules = modules_of(self.model)
        self._blocks = [modules[name] for name in stack.names]
        self._index = {id(block): index for index, block in enumerate(self._blocks)}
        # A function of its own: compiled steps go when the stream does, as the subclasses in them do.
        self._step = jax.jit(functools.partial(step), static_argnames="call")
        _share_functions(self._blocks)
        streamed = functools.cache(functools.partial(_streamed, session=weakref.ref(self)))
        for block in self._blocks:
            block.__class__ = streamed(type(block))

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

    def close(self) -> None:
        """Stops reading and frees the buffers. Idempotent."""
        self._stack.close()

    def __enter__(self) -> StreamedNnx:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, block: nnx.Module, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`method` of a block, as a step on its record; what it changes of variables is written back."""
        index = self._index.get(id(block))
        if index is None:  # a transformation merges a module of its own
            raise traced_error(type(block).__name__)
        graph, params, state, arrays = split_call(block, args, kwargs)
        original = type(block).__mro__[1]
        call = Call(self._stack.names[index], original, method, graph, self._stack.signatures[index], params)
        check_hashable(call, call.name, expected="arrays, variables, or values that compare and hash")
        result, state = self._stack.apply(index, functools.partial(self._step, call=call), state, arrays)
        if jax.tree.leaves(state):
            nnx.update((block, args, kwargs), state)
        return result


def _streamed(original: type[nnx.Module], *, session: Callable[[], StreamedNnx | None]) -> type[nnx.Module]:
    """A subclass whose public methods are steps. It holds the session weakly: JAX never forgets a class."""

    def stepping(name: str) -> Callable[..., Any]:
        @functools.wraps(getattr(original, name))
        def call(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            running = session()
            if running is None:
                raise traced_error(type(self).__name__)
            return running.call(self, name, args, kwargs)

        return call

    own = original.__mro__[: original.__mro__.index(nnx.Module)]
    names = {name for each in own for name, value in vars(each).items() if _is_method(value)}
    public = [name for name in names if name == "__call__" or not name.startswith("_")]
    described = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    namespace = described | {name: stepping(name) for name in public}
    # A class keyword of NNX's, which subclasses do not inherit.
    keywords = {"pytree": original._pytree__is_pytree}
    try:
        return types.new_class(original.__name__, (original,), keywords, lambda body: body.update(namespace))
    except TypeError as error:
        raise UnsupportedError(
            f"blocks of class {original.__name__}",
            got=f"a class whose subclasses need arguments ({error})",
            expected="one of which a subclass can be made",
            fix="give the keywords of __init_subclass__ defaults",
        ) from error


def _is_method(value: Any) -> bool:
    """Also for what `nnx.jit` makes of a function; not for static methods, which know no block."""
    return inspect.isfunction(value) or (
        not isinstance(value, staticmethod | classmethod) and inspect.isfunction(inspect.unwrap(value))
    )


def _share_functions(blocks: Sequence[nnx.Module]) -> None:
    """Blocks that differ only in functions made anew for each get equal ones, and so one compiled step."""
    functions = Functions()
    for block in blocks:
        for _, module in nnx.iter_modules(block):
            for name, value in list(vars(module).items()):
                if (one := functions.one(value)) is not value:
                    setattr(module, name, one)


def _from_rest(model: nnx.Module, stack: Stack) -> nnx.Module:
    """A copy of the model with the values of a checkpoint, and none in the parameters of its blocks."""
    graph, state = nnx.split(model)
    modules = modules_of(model)
    expected: dict[str, Any] = {}
    for block, signature in zip(stack.names, stack.signatures, strict=True):
        stored = {name: (place.shape, place.dtype) for name, place in signature.layout.tensors}
        params = params_of(modules[block]) if block in modules else {}
        check_same(block, stored, params)
        expected |= {f"{block}.{name}": None for name in params}
    flat = leaves_of(state)
    plain = plain_arrays(modules)
    others = {name: pair for name, pair in flat.items() if name not in expected} | plain
    check_same("the rest", {n: (a.shape, a.dtype.name) for n, a in stack.rest.items()}, others)

    def filled(name: str, leaf: Any) -> Any:
        held = value_of(leaf)
        if name in expected:
            value = StreamedParameter(name, held.shape, held.dtype)
        elif jnp.issubdtype(held.dtype, jax.dtypes.prng_key):
            value = jax.random.wrap_key_data(stack.rest[name], impl=key_impl(held))
        else:
            value = stack.rest[name]
        return leaf.replace(value) if isinstance(leaf, nnx.Variable) else value

    copy = nnx.merge(
        graph, nnx.from_flat_state([(p, filled(name, leaf)) for name, (p, leaf) in flat.items()])
    )
    modules = modules_of(copy)
    for name, ((module, attribute), _) in plain.items():
        setattr(modules[module], attribute, nnx.data(stack.rest[name]))
    return copy
