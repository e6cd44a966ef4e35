"""The step that a call of a streamed Linen block is: the block, alone, applied to its expanded parameters."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import flax.core
import flax.errors
import jax
from flax import linen as nn
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from endor_jax.adapters.stack import dense_params
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.format.record import Record
from endor_jax.store.manifest import Signature


@dataclass(frozen=True)
class Call:
    """All that is static in a call of a block; calls that compare equal share one compiled step.

    name: of the block that is called. mutable: as `apply` takes it. structure: of the arguments, whose leaves
    are arrays where `dynamic` says so, else `static` has them. rngs: names of the random keys that the model
    has. signature: of its record, whose layout is static in the record already.
    """

    name: str = field(compare=False)
    module: nn.Module
    method: str
    mutable: Any
    structure: Any
    dynamic: tuple[bool, ...]
    static: tuple[Any, ...]
    rngs: tuple[str, ...]
    signature: Signature = field(compare=False)


def step(record: Record, collections: dict[str, Any], arrays: list[Any], *, call: Call) -> tuple[Any, Any]:
    """(what the method gives, the collections that it may change)."""
    # A block may ask whether there are keys, and may not use them: those that it meets are no user's.
    keys = {name: jax.random.key(0) for name in call.rngs}
    given = (keys, dense_params(record, call.signature), collections, arrays)
    traced, shapes = jax.make_jaxpr(functools.partial(_called, call=call), return_shape=True)(*given)
    _, used = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    if any(used[: len(keys)]):
        raise UnsupportedError(
            f"streamed block {call.name}",
            got="a call that draws random numbers",
            expected="one without: Linen makes them of the place of a block, which its step must not know",
            fix="call the model deterministically, or pass a key to the block as an argument",
        )
    return jax.tree.unflatten(jax.tree.structure(shapes), core.jaxpr_as_fun(traced)(*jax.tree.leaves(given)))


def _called(keys: Any, params: Any, collections: dict[str, Any], arrays: list[Any], *, call: Call) -> Any:
    """What `step` gives."""
    left = iter(arrays)
    leaves = [next(left) if mine else held for mine, held in zip(call.dynamic, call.static, strict=True)]
    args, kwargs = jax.tree.unflatten(call.structure, leaves)
    variables = {"params": params} | collections
    try:
        found = call.module.apply(
            variables, *args, rngs=keys, method=call.method, mutable=call.mutable, **kwargs
        )
    except flax.errors.ScopeParamNotFoundError as error:
        raise UnsupportedError(
            f"streamed block {call.name}",
            got=f"a call that looks for a parameter where the block has none ({error})",
            expected="parameters of its own, whose names do not depend on the name or place of the block",
            fix="make modules that are passed to a block with parent=None, or in setup",
        ) from error
    return (found, {}) if call.mutable is False else (found[0], plain(found[1]))


def plain(variables: Any) -> dict[str, Any]:
    """Nested dicts without FrozenDicts. Raises InvalidInputError for other containers of arrays."""
    unfrozen = flax.core.unfreeze(variables)
    for path, _ in jax.tree_util.tree_leaves_with_path(unfrozen):
        for key in path:
            if not isinstance(key, jax.tree_util.DictKey | jax.tree_util.SequenceKey):
                raise InvalidInputError(
                    "variables",
                    got=f"a box around {jax.tree_util.keystr(path)}",
                    expected="dicts of arrays",
                    fix="pass flax.linen.meta.unbox(variables)",
                )
    return unfrozen
