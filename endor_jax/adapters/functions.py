"""Functions that do the same, made one.

An initializer or a lambda that every block makes anew is no reason to compile every block anew.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any


class Functions:
    """Keeps one of each set of functions that agree in code, defaults, globals and what they close over."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Callable[..., Any]] = {}

    def one(self, value: Any) -> Any:
        """The first such function that was given; anything else, and what cannot be compared, as it is."""
        if not isinstance(value, functools.partial) and not inspect.isfunction(value):
            return value
        try:
            return self._known.setdefault(_key(value, ()), value)
        except (TypeError, ValueError):  # closes over an array, or over a name that has no value yet
            return value


def _key(value: Any, within: tuple[int, ...]) -> Hashable:
    """Equal for values that cannot be told apart by what a function does with them."""
    if id(value) in within:
        raise ValueError("a function that closes over itself")
    inner = (*within, id(value))

    def keys(values: Any) -> Hashable:
        return tuple(_key(each, inner) for each in values)

    if isinstance(value, functools.partial):
        named = sorted(value.keywords)
        return (
            "partial",
            _key(value.func, inner),
            keys(value.args),
            tuple(named),
            keys(value.keywords[name] for name in named),
        )
    if inspect.isfunction(value):
        defaults = value.__kwdefaults__ or {}
        named = sorted(defaults)
        return (
            value.__code__,
            id(value.__globals__),
            keys(value.__defaults__ or ()),
            tuple(named),
            keys(defaults[name] for name in named),
            keys(cell.cell_contents for cell in value.__closure__ or ()),
        )
    if isinstance(value, tuple):
        return type(value), keys(value)
    # 1, 1.0 and True are equal, and so are 0.0 and -0.0.
    key = value.hex() if isinstance(value, float) else value
    hash(key)
    return type(value), key
