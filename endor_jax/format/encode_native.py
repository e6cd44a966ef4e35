"""Encoding one matrix with the compiled extension: the same pieces as the NumPy oracle, byte for byte.

The elements are gone over twice: first their fields are counted, segment by segment, then the pieces are set
aside at their exact length and filled. So what is held besides the pieces is one segment. One thread, which
does not hold Python's lock meanwhile.
"""

from __future__ import annotations

import ctypes

import numpy as np

from endor_jax import native
from endor_jax.arrays import FloatFormat
from endor_jax.errors import UnsupportedError
from endor_jax.format import bitmap, fields
from endor_jax.format.encoded_matrix import EncodedMatrix
from endor_jax.format.layout import SEGMENT
from endor_jax.format.values import Codec


def encode_matrix_natively(
    bits: np.ndarray, codec: Codec, number: FloatFormat, *, instruction_set: str = ""
) -> EncodedMatrix:
    """Encodes (rows, columns) element bits, C-contiguous, in the unsigned dtype of `number`. No codec that
    quantises.

    instruction_set: "avx512" or "scalar"; "" takes the best that the processor has. Raises UnsupportedError
    for others, and without the extension; RuntimeError if another thread changes the elements meanwhile.
    """
    assert bits.flags.c_contiguous
    assert not codec.quantised
    assert bits.dtype == number.unsigned
    rows, columns = bits.shape
    segments = -(-columns // min(SEGMENT, columns))
    packed, width = codec.kind == "packed", codec.field_bits(number)
    dense = native.Dense(
        native.NUMBERS[number.name], width, packed, codec.bitmap, rows, columns, bits.ctypes.data
    )
    counts, totals = np.empty((rows, segments), np.int64), native.Counts()
    bases = np.empty((rows, segments), np.uint8) if packed else None
    library, name = native.library(), instruction_set.encode()
    wrong = library.endor_count_fields(dense, name, _address(bases), _address(counts), totals)
    if wrong is not None:
        raise UnsupportedError(
            "encoding",
            got=f"{instruction_set!r}: {wrong.decode()}",
            expected="the name of an encoder that this processor can run",
            fix="leave instruction_set out to take the best",
        )
    encoded = EncodedMatrix(
        bitmap=np.empty((rows, bitmap.words_per_row(columns)), np.uint32) if codec.bitmap else None,
        counts=counts,
        bases=bases,
        scales=None,
        stream=np.empty(fields.stream_words(totals.fields, width), np.uint32),
        escape_index=np.empty(totals.escapes, np.uint32),
        escape_bits=np.empty(totals.escapes, number.unsigned),
        nonzero=totals.nonzero,
    )
    pieces = native.Pieces(
        _address(bases),
        _address(encoded.bitmap),
        _address(encoded.stream),
        encoded.stream.shape[0],
        _address(encoded.escape_index),
        _address(encoded.escape_bits),
        totals.escapes,
    )
    wrong = library.endor_write_fields(dense, name, ctypes.byref(pieces))
    if wrong is not None:
        raise RuntimeError(f"encoding: {wrong.decode()}: another thread wrote to them")
    return encoded


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data
