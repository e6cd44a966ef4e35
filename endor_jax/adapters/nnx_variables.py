"""Modules and variables of an NNX model by dotted path, and their values as they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.streaming.step import is_traced

Path = tuple[Any, ...]
Leaves = dict[str, tuple[Path, Any]]
"""Dotted path -> path and leaf: a Variable, or an array that a module holds as such."""


def check_same(
    where: str, stored: Mapping[str, tuple[tuple[int, ...], str]], wanted: Mapping[str, tuple[Path, Any]]
) -> None:
    """Raises InvalidInputError, with the first difference, unless names, shapes and dtypes agree."""
    shapes = {}
    for name, (_, leaf) in wanted.items():
        shape = jax.eval_shape(raw_value, value_of(leaf))
        shapes[name] = (shape.shape, shape.dtype.name)
    for name in sorted(stored.keys() | shapes.keys()):
        if stored.get(name) != shapes.get(name):
            raise InvalidInputError(
                f"{where}, {name}",
                got=f"{_described(stored.get(name))} in the checkpoint",
                expected=f"{_described(shapes.get(name))}, as the model has it",
                fix="make the model as it was when it was saved; where nnx.eval_shape leaves something out, "
                "give an instance instead",
            )


def _described(found: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if found is None else f"{found[1]}{list(found[0])}"


def modules_of(model: nnx.Module) -> dict[str, nnx.Module]:
    """All modules by dotted path, containers left out."""
    named = _dotted(nnx.iter_modules(model))
    return {
        name: module for name, (_, module) in named.items() if not isinstance(module, (nnx.List, nnx.Dict))
    }


def plain_arrays(modules: Mapping[str, nnx.Module]) -> Leaves:
    """Arrays without a Variable in a model that `nnx.eval_shape` made, which takes them for static.

    By dotted name: (module, attribute), shape and dtype.
    """
    return {
        f"{module}.{name}" if module else name: ((module, name), jax.ShapeDtypeStruct(held.shape, held.dtype))
        for module, its in modules.items()
        for name, held in vars(its).items()
        if is_traced(held)
    }


def params_of(block: nnx.Module) -> Leaves:
    """The parameters of a module, which make its record. Raises as `leaves_of` does."""
    return leaves_of(nnx.state(block, nnx.Param))


def leaves_of(state: Any) -> Leaves:
    """The leaves of an `nnx.State`. Raises InvalidInputError if two paths are spelled alike."""
    return _dotted(nnx.to_flat_state(state))


def _dotted(pairs: Iterable[tuple[Path, Any]]) -> Leaves:
    """Raises InvalidInputError if two paths are spelled alike."""
    flat: Leaves = {}
    for path, found in pairs:
        name = ".".join(map(str, path))
        if name in flat:
            raise InvalidInputError(
                "model",
                got=f"two modules or variables named {name!r}",
                expected="one name for each",
                fix="use keys without dots",
            )
        flat[name] = (path, found)
    return flat


def value_of(leaf: Any) -> Any:
    """The array of a leaf; that of an abstract model is a ShapeDtypeStruct."""
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def raw_value(value: Any) -> Any:
    """A random key as the integers that it is made of."""
    return jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value


def key_impl(keys: Any) -> Any:
    """What kind of random keys these are; they may be abstract."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), keys)
    return found[0]


def stored_value(leaf: Any) -> Any:
    """The array of a leaf as a checkpoint holds it."""
    return raw_value(value_of(leaf))


def refuse_shared(modules: Mapping[str, nnx.Module], blocks: Sequence[str]) -> None:
    """Raises UnsupportedError for a parameter that a block and another module have in common."""
    owners: dict[int, str] = {}
    for path, module in modules.items():
        block = next((name for name in blocks if path == name or path.startswith(f"{name}.")), "")
        for name, value in vars(module).items():
            if isinstance(value, nnx.Param) and owners.setdefault(id(value), block) != block:
                raise shared_error(block or owners[id(value)], name)


def shared_error(block: str, name: str) -> UnsupportedError:
    """For a parameter of a block that is not in its record alone."""
    return UnsupportedError(
        f"block {block}",
        got=f"a parameter {name} that another module has too",
        expected="parameters of its own",
        fix="leave that module out of the blocks, or copy the parameter",
    )
