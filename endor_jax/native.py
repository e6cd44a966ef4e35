"""The compiled extension: where it is, what it has, and its C interface for ctypes.

Its sources are in `kernels/native/`; `setup.py` builds it where there is a compiler. It is one shared library
for every Python: it does not know Python, only C and XLA's custom calls.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np

from endor_jax.errors import UnsupportedError

LIBRARY = "_native.abi3.so"
NUMBERS = {"bfloat16": 0, "float16": 1, "float32": 2}
"""`Number` in kernels/native/matrix.h."""


class Matrix(ctypes.Structure):
    """`EndorMatrix` in kernels/native/c_api.h."""

    _fields_ = [
        ("number", ctypes.c_int32),
        ("field_bits", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("header", ctypes.c_int64),
        ("bitmap", ctypes.c_int64),
        ("offsets", ctypes.c_int64),
        ("bases", ctypes.c_int64),
        ("scales", ctypes.c_int64),
        ("escape_capacity", ctypes.c_int64),
        ("matrix_rows", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("words", ctypes.POINTER(ctypes.c_void_p)),
        ("counts", ctypes.POINTER(ctypes.c_int64)),
    ]


class Dense(ctypes.Structure):
    """`EndorDense` in kernels/native/c_api.h."""

    _fields_ = [
        ("number", ctypes.c_int32),
        ("field_bits", ctypes.c_int32),
        ("packed", ctypes.c_int32),
        ("has_bitmap", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("bits", ctypes.c_void_p),
    ]


class Counts(ctypes.Structure):
    """`EndorCounts` in kernels/native/c_api.h."""

    _fields_ = [("fields", ctypes.c_int64), ("escapes", ctypes.c_int64), ("nonzero", ctypes.c_int64)]


class Pieces(ctypes.Structure):
    """`EndorPieces` in kernels/native/c_api.h."""

    _fields_ = [
        ("bases", ctypes.c_void_p),
        ("bitmap", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
        ("stream_words", ctypes.c_int64),
        ("escape_index", ctypes.c_void_p),
        ("escape_bits", ctypes.c_void_p),
        ("escapes", ctypes.c_int64),
    ]


def path() -> Path:
    """Where the library is, if it was built."""
    return Path(__file__).with_name(LIBRARY)


@functools.cache
def available() -> bool:
    """Whether the extension was built for this installation."""
    return path().is_file()


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library. Raises UnsupportedError if it was not built, or not for this system."""
    if not available():
        raise UnsupportedError(
            "compiled extension",
            got=f"no {path()}",
            expected="the library that installing with a C++ compiler builds",
            fix="install g++ and endor_jax again, or leave implementation out to use XLA",
        )
    try:
        loaded = ctypes.CDLL(str(path()))
    except OSError as error:  # one of another system, or of newer libraries than there are
        raise UnsupportedError(
            "compiled extension",
            got=str(error),
            expected="a library built for this system",
            fix="install endor_jax again from its sources, or remove that file to use XLA",
        ) from error
    loaded.endor_instruction_sets.restype = ctypes.c_char_p
    for name in ("endor_expand", "endor_multiply", "endor_count_fields", "endor_write_fields"):
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.endor_expand.argtypes = [
        ctypes.POINTER(Matrix),
        ctypes.c_char_p,
        ctypes.c_int32,
        ctypes.c_void_p,
    ]
    loaded.endor_multiply.argtypes = [
        ctypes.POINTER(Matrix),
        ctypes.c_char_p,
        ctypes.c_int32,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_void_p,
    ]
    loaded.endor_count_fields.argtypes = [
        ctypes.POINTER(Dense),
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.POINTER(Counts),
    ]
    loaded.endor_write_fields.argtypes = [ctypes.POINTER(Dense), ctypes.c_char_p, ctypes.POINTER(Pieces)]
    return loaded


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """Names of the instruction sets that the extension has kernels for and this processor has, best first.

    The last is "scalar", which every processor has. Empty if the extension was not built.
    """
    if not available():
        return ()
    return tuple(library().endor_instruction_sets().decode().split())


def pointer(array: np.ndarray) -> Any:
    """The address of an array's first element, for ctypes."""
    return array.ctypes.data_as(ctypes.c_void_p)
