"""The step that a call of a streamed NNX block is: a block put together from expanded weights, and called."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx
from jax.extend import core

from endor_jax.adapters.nnx_variables import Leaves, leaves_of
from endor_jax.adapters.passed_through import argument
from endor_jax.adapters.stack import dense_params
from endor_jax.errors import UnsupportedError
from endor_jax.format.record import Record
from endor_jax.store.manifest import Signature


@dataclass(frozen=True)
class Call:
    """All that is static in a call of a block; calls that compare equal share one compiled step.

    name: of the block that is called. signature: of its record, whose layout is static in the record already.
    params: its parameters without values. Any of the equal calls may give these when a step is compiled.
    """

    name: str = field(compare=False)
    original: type[nnx.Module]
    method: str
    graph: Any
    signature: Signature = field(compare=False)
    params: Any = field(compare=False)


def split_call(block: nnx.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """(graph, parameters of the block, all else that the call may change, arrays among the arguments).

    Block and arguments are one graph: they may have variables in common.
    """

    def of_block(path: tuple[Any, ...], value: Any) -> bool:
        return path[0] == 0

    mutable = nnx.Any(of_block, nnx.Variable)
    return nnx.split((block, args, kwargs), nnx.All(of_block, nnx.Param), mutable, ...)


def step(record: Record, state: Any, arrays: Any, call: Call) -> tuple[Any, Any]:
    """(what the method gives, variables of the block and among the arguments)."""
    dense = dense_params(record, call.signature)
    method = jax.make_jaxpr(functools.partial(_called, call=call), return_shape=True)
    traced, shapes = method(dense, state, arrays)
    # Parameters come first, in the order of their names, in what it takes and in what it gives.
    for index, name in enumerate(sorted(dense)):
        if argument(traced.jaxpr, traced.jaxpr.outvars[index]) != index:
            kind = type(_params(call.params)[name][1]).__name__
            raise UnsupportedError(
                f"streamed block {call.name}",
                got=f"a call of {call.method} that changes its {kind} {name}",
                expected="parameters that stay as they are: they are read again for every call",
                fix="keep what changes in a variable of another type, such as nnx.BatchStat",
            )
    results = core.jaxpr_as_fun(traced)(*jax.tree.leaves((dense, state, arrays)))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)[1]


def _called(dense: dict[str, Any], state: Any, arrays: Any, *, call: Call) -> Any:
    """(the parameters after a call of a block, what `step` gives)."""
    params = [
        (path, variable.replace(dense[name])) for name, (path, variable) in _params(call.params).items()
    ]
    block, args, kwargs = nnx.merge(call.graph, nnx.from_flat_state(params), state, arrays)
    streamed, block.__class__ = type(block), call.original
    result = getattr(block, call.method)(*args, **kwargs)
    block.__class__ = streamed
    graph, after, state, _ = split_call(block, args, kwargs)
    if graph != call.graph:
        raise UnsupportedError(
            f"streamed block {call.name}",
            got=f"a call of {call.method} that adds or removes variables, or sets attributes",
            expected="the structure it had before",
            fix="make what it adds before streaming (caches, sow), or return it",
        )
    return {name: variable.get_value() for name, (_, variable) in _params(after).items()}, (result, state)


def _params(state: Any) -> Leaves:
    """The parameters of a block by name, from a state of a call: there the block is number 0."""
    return {name.removeprefix("0."): leaf for name, leaf in leaves_of(state).items()}
