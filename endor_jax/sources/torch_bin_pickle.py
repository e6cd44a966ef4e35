"""The pickle in a torch file, read without running anything: which tensors there are, and where.

`pickletools` of the standard library takes the pickle apart, and what its instructions ask for is done here
with values only. A global is a name to us: it is never looked up, imported or called, so a pickle can do no
more than be refused. What a state dict of tensors needs is understood; all else is refused by its name.

Source: torch/serialization.py (`_save`, `persistent_load`) and torch/_utils.py (`_rebuild_tensor_v2`).
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

from endor_jax.errors import EndorError, InvalidInputError, UnsupportedError
from endor_jax.sources.brief import brief, brief_text

STORAGES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.ByteStorage": "uint8",
    "torch.CharStorage": "int8",
    "torch.ShortStorage": "int16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
}
"""Class of a storage -> NumPy or ml_dtypes name of its elements."""
_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_SIZE = "torch.Size"
_GLOBALS = {*STORAGES, _DICT, _TENSOR, _PARAMETER, _SIZE}
_FIX = "keep the model's tensors only: load it with torch, then `torch.save(model.state_dict(), FILE)`"


@dataclass(frozen=True)
class Storage:
    """A run of elements, in the zip member data/`key`."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True)
class View:
    """A tensor as it was pickled: a view of a storage, in elements. Nothing is checked but the types."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """The name of something in a Python module."""

    name: str


@dataclass(frozen=True)
class _Mark:
    """Where the items of a tuple, list or dict begin on the stack."""


_MARK = _Mark()
_VALUES: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ARGUMENTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_views(data: bytes, *, where: str) -> dict[str, View]:
    """Every tensor of a pickled state dict, by name, in its order.

    Raises UnsupportedError, naming it, for what is not part of a flat dictionary of tensors by name, and
    InvalidInputError for bytes that are no pickle.
    """
    state = _load(data, where=where)
    if not isinstance(state, dict):
        raise _unsupported(where, got=_kind(state), expected="a dictionary of tensors by name")
    for name, value in state.items():
        if not isinstance(value, View):
            raise _unsupported(
                f"entry {brief(name)} of {where}", got=_kind(value), expected="a tensor, as all entries are"
            )
    return state


def _load(data: bytes, *, where: str) -> Any:
    """What the pickle makes, of dicts by string, lists, tuples, numbers, strings and views."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    try:
        for operation, argument, _ in pickletools.genops(data):
            name = operation.name
            if name == "STOP":
                return stack.pop()
            if name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in _ARGUMENTS:
                stack.append(argument)
            elif name in _VALUES:
                stack.append(_VALUES[name])
            elif name != "PROTO":
                _apply(name, argument, stack, where=where)
    except EndorError:
        raise
    # Of an instruction that wants more than the stack or the memo has, and what `pickletools` refuses, or
    # warns of where warnings are errors.
    except (IndexError, KeyError, ValueError, OverflowError, Warning) as error:
        raise _damaged(where, got=f"a pickle that breaks off ({brief_text(error)})") from error
    raise _damaged(where, got="a pickle without end")


def _apply(name: str, argument: Any, stack: list[Any], *, where: str) -> None:
    """One instruction that makes something of what is on the stack."""
    match name:
        case "GLOBAL":
            stack.append(_global(argument, where=where))
        case "MARK":
            stack.append(_MARK)
        case "TUPLE":
            stack.append(tuple(_items(stack)))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        case "EMPTY_LIST":
            stack.append([])
        case "EMPTY_DICT":
            stack.append({})
        case "APPEND":
            item = stack.pop()
            _extend(stack[-1], [item], where=where)
        case "APPENDS":
            items = _items(stack)
            _extend(stack[-1], items, where=where)
        case "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, value], where=where)
        case "SETITEMS":
            items = _items(stack)
            _set(stack[-1], items, where=where)
        case "BINPERSID":
            stack.append(_storage(stack.pop(), where=where))
        case "REDUCE":
            arguments = stack.pop()
            stack.append(_reduce(stack.pop(), arguments, where=where))
        case "BUILD":
            _check_attributes(stack.pop(), stack[-1], where=where)
        case _:
            raise _unsupported(
                where,
                got=f"pickle instruction {name}",
                expected="those of pickle protocol 2, torch's default",
            )


def _global(argument: str, *, where: str) -> _Global:
    name = argument.replace(" ", ".")
    if name not in _GLOBALS:
        raise _unsupported(
            where, got=f"the Python object {brief(name)}", expected="tensors only; nothing of it was run"
        )
    return _Global(name)


def _items(stack: list[Any]) -> list[Any]:
    """What lies above the last mark, taken off with it."""
    height = len(stack) - 1
    while stack[height] is not _MARK:
        height -= 1
        if height < 0:
            raise IndexError("no mark")
    items = stack[height + 1 :]
    del stack[height:]
    return items


def _extend(target: Any, items: list[Any], *, where: str) -> None:
    if type(target) is not list:
        raise _damaged(where, got=f"items appended to {_kind(target)}")
    target.extend(items)


def _set(target: Any, items: list[Any], *, where: str) -> None:
    if type(target) is not dict or len(items) % 2:
        raise _damaged(where, got=f"{len(items)} keys and values set in {_kind(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str) or not _is_text(key):
            raise _unsupported(
                where, got=f"a dictionary with the key {_kind(key)}", expected="tensors by name"
            )
        if key in target:
            raise _damaged(where, got=f"two entries {brief(key)}")
        target[key] = value


def _is_text(key: str) -> bool:
    """Half of a surrogate pair is in no UTF-8, so such a name could not be written again."""
    return not any("\ud800" <= letter <= "\udfff" for letter in key)


def _storage(identity: Any, *, where: str) -> Storage:
    """What a persistent id stands for: ("storage", class, key, device, elements)."""
    match identity:
        case ("storage", _Global(name), str(key), str(), int(elements)) if (
            name in STORAGES and type(elements) is int and elements >= 0
        ):
            return Storage(STORAGES[name], key, elements)
    raise _unsupported(where, got=f"persistent id {brief(identity)}", expected="that of a storage")


def _reduce(function: Any, arguments: Any, *, where: str) -> Any:
    """What torch would make by calling `function`."""
    match function, arguments:
        case _Global(name), () if name == _DICT:
            return {}
        case _Global(name), (tuple() as size,) if name == _SIZE:
            return size
        case _Global(name), (View() as view, bool(), hooks) if name == _PARAMETER and not hooks:
            return view
        case _Global(name), (
            Storage() as storage,
            start,
            tuple() as shape,
            tuple() as strides,
            bool(),
            *rest,
        ):
            # The rest are hooks for gradients and, in newer files, flags such as "conjugated".
            if name == _TENSOR and any(rest):
                raise _unsupported(
                    where, got=f"a tensor with {brief(rest)}", expected="no hooks and no flags"
                )
            sizes = (start, *shape, *strides)
            if name == _TENSOR and all(type(it) is int and it >= 0 for it in sizes):
                return View(storage, start, shape, strides)
    got = f"{function.name} of {brief(arguments)}" if isinstance(function, _Global) else _kind(function)
    raise _unsupported(where, got=got, expected="a plain tensor of a storage")


def _check_attributes(state: Any, target: Any, *, where: str) -> None:
    """A state dict has one attribute, `_metadata` with versions of module classes, which says nothing of the
    tensors."""
    if type(target) is not dict or type(state) is not dict or state.keys() - {"_metadata"}:
        raise _unsupported(
            where, got=f"attributes {brief(state)} of {_kind(target)}", expected="none but `_metadata`"
        )


def _kind(value: Any) -> str:
    match value:
        case View():
            return "a tensor"
        case dict():
            return f"a dictionary with {len(value)} entries"
        case list() | tuple():
            return f"a {type(value).__name__} of {len(value)}"
        case _Global(name):
            return name
        case _Mark() | Storage():
            return "part of a tensor"
    return brief(value)


def _unsupported(where: str, *, got: str, expected: str) -> UnsupportedError:
    return UnsupportedError(where, got=got, expected=expected, fix=_FIX)


def _damaged(where: str, *, got: str) -> InvalidInputError:
    return InvalidInputError(
        where, got=got, expected="the pickle of a state dict", fix="the file is damaged: fetch it again"
    )
