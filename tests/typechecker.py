"""How jaxtyping's import hook has functions checked in tests: by beartype, each argument and result once.

jaxtyping's wrapper checks arguments twice, binds them in Python, and has two checkers made whenever a nested
function is defined: together a quarter of what the tests took, nearly all of it for functions without arrays.
Those beartype wraps alone here. All others jaxtyping wraps, with checkers that are made once.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_alone = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))  # a TypeError, as jaxtyping's
_with_arrays = jaxtyping.jaxtyped
_of_nested: dict[tuple[object, ...], Callable[..., Any]] = {}


def install() -> None:
    """From now on, what the import hook puts before every function and class is `wrap` here."""
    jaxtyping.jaxtyped = wrap


def wrap(*args: Any, **options: Any) -> Any:
    """`jaxtyping.jaxtyped`, but a function that is top-level and has no arrays is beartype's alone."""
    wrap_with_arrays = _with_arrays(*args, **options)
    if args or options != {"typechecker": options.get("typechecker")}:
        return wrap_with_arrays

    def wrapped(each: Any) -> Any:
        if inspect.isclass(each):
            if dataclasses.is_dataclass(each) and "__init__" in vars(each) and _is_plain(each.__init__):
                each.__init__ = _alone(each.__init__)
                return each
        elif _is_plain(each):
            return _alone(each)
        return wrap_with_arrays(each)

    return wrapped


def _is_plain(function: Any) -> bool:
    """Whether beartype alone checks a function as jaxtyping would: no array's axes are to be compared.

    Its annotations are evaluated here. One that cannot be yet is Any for jaxtyping, not for beartype.
    """
    if not inspect.isfunction(function) or "<locals>" in function.__qualname__:
        return False
    suspended = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    if function.__code__.co_flags & suspended:  # beartype would check its arguments when it is first resumed
        return False
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # whatever evaluating a name that is not there yet may raise
        return False
    if "jaxtyping" in repr(hints):
        return False
    function.__annotations__ = hints
    return True


def checked(function: Any) -> Any:
    """What beartype makes of a function that jaxtyping wraps; of a nested one, what it made the first time.

    jaxtyping hands over functions that only are checked and do nothing, with annotations that mean the same
    each time, because it evaluates them by the module's globals.
    """
    if "<locals>" not in function.__qualname__:
        return beartype(function)
    code = function.__code__
    annotations = tuple((name, repr(each)) for name, each in function.__annotations__.items())
    key = (
        function.__module__,
        function.__qualname__,
        *(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_varnames),
        annotations,
    )
    if key not in _of_nested:
        _of_nested[key] = beartype(function)
    return _of_nested[key]
