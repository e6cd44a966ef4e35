"""Choosing a codec by exact byte count: one per role for a whole checkpoint, so that layers share a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from endor_jax.arrays import FLOAT_FORMATS, FloatFormat, bits_of
from endor_jax.errors import InvalidInputError
from endor_jax.format import bitmap
from endor_jax.format.encode import escape_words
from endor_jax.format.encode_matrix import block_rows
from endor_jax.format.layout import GROUP, SEGMENT, matrix_shape
from endor_jax.format.quantise import quantise
from endor_jax.format.values import (
    INTEGER_BITS,
    Codec,
    best_windows,
    exponent_histogram,
    exponents_of,
    packed_codecs,
    parse_codec,
)

TOLERANCE = 1.01
"""Of codecs within 1 % of the smallest, the one with fewest escapes is taken: escapes cost time too."""
SAMPLE_SEGMENTS = 4096
"""Segments of an array that a choice looks at: enough for a byte count within a fraction of a percent."""


def choose_codec(samples: Sequence[np.ndarray], values: str = "auto") -> Codec:
    """The codec with the fewest bytes over sample arrays of one role (one dtype: bfloat16, float16, float32).

    values: "auto" considers raw and every packed width, each with and without a bitmap; "raw", "packed" and
    "packed:K" restrict that; "int8" and "int4", which lose something, are taken only when asked for. Of long
    arrays evenly spaced rows are looked at (SAMPLE_SEGMENTS). Raises InvalidInputError for other text, a K
    that the dtype has no room for, or samples that cannot be quantised.
    """
    number = FLOAT_FORMATS[samples[0].dtype.name]
    allowed = _allowed(values, number)
    sizes: dict[Codec, tuple[int, int]] = {}
    for sample in samples:
        matrix = sample_rows(sample.reshape(matrix_shape(sample.shape)))
        kind = values.removeprefix("dense-")
        found = _quantised_sizes(matrix, kind) if kind in INTEGER_BITS else codec_sizes(matrix)
        for codec, (size, escapes) in found.items():
            before = sizes.get(codec, (0, 0))
            sizes[codec] = before[0] + size, before[1] + escapes
    sizes = {codec: size for codec, size in sizes.items() if allowed(codec)}
    smallest = min(size for size, _ in sizes.values())
    near = [codec for codec, (size, _) in sizes.items() if size <= TOLERANCE * smallest]
    return min(near, key=lambda codec: (sizes[codec][1], sizes[codec][0]))


def sample_rows(matrix: np.ndarray) -> np.ndarray:
    """Evenly spaced rows of a matrix, of at most SAMPLE_SEGMENTS segments (but one row at least), as a copy.

    All of it, uncopied, if it is no longer than that.
    """
    rows, columns = matrix.shape
    step = -(-rows * -(-columns // SEGMENT) // SAMPLE_SEGMENTS)
    return matrix if step == 1 else matrix[::step].copy()


def _allowed(values: str, number: FloatFormat) -> Callable[[Codec], bool]:
    """Which codecs a `values` text admits for this number format."""
    if values == "auto":
        return lambda codec: True
    if values == "packed":
        return lambda codec: codec.kind == "packed"
    asked = parse_codec(values)
    if asked.kind == "packed" and asked.exponent_bits >= number.exponent_bits:
        raise InvalidInputError(
            "value codec",
            got=f"{values} for {number.name}",
            expected=f"fewer than {number.exponent_bits} exponent bits",
            fix="use a smaller K, or auto",
        )
    return lambda codec: (codec.kind, codec.exponent_bits) == (asked.kind, asked.exponent_bits)


def codec_size(matrix: np.ndarray, codec: Codec) -> tuple[int, int]:
    """(bytes, escapes) of a (rows, columns) float matrix under one codec, any there is.

    Raises InvalidInputError for a matrix that cannot be quantised, if the codec does that.
    """
    sizes = _quantised_sizes(matrix, codec.kind) if codec.quantised else codec_sizes(matrix)
    return sizes[codec]


def codec_sizes(matrix: np.ndarray) -> dict[Codec, tuple[int, int]]:
    """(bytes, escapes) of a (rows, columns) float matrix under every codec without loss.

    The bytes are those of bitmap, offsets, bases, stream and escapes: exactly what `encode_matrix` produces,
    found without encoding.
    """
    bits, number = bits_of(matrix), FLOAT_FORMATS[matrix.dtype.name]
    rows, columns = bits.shape
    segments = rows * -(-columns // min(SEGMENT, columns))
    nonzero, total = int(np.count_nonzero(bits)), bits.size
    packed = packed_codecs(number, bitmap=True)
    covered = _covered(bits, number, [codec.exponent_bits for codec in packed])
    bitmap_words = rows * bitmap.words_per_row(columns)
    sizes: dict[Codec, tuple[int, int]] = {}
    for with_bitmap, candidates, fixed in (
        (True, nonzero, bitmap_words + segments),
        (False, total, segments),
    ):
        raw = Codec("raw", bitmap=with_bitmap)
        sizes[raw] = 4 * (fixed + -(-candidates * number.bits // 32)), 0
        for codec in packed_codecs(number, bitmap=with_bitmap):
            fits = covered[codec.exponent_bits]
            stored = fits if with_bitmap else total
            words = fixed + -(-segments // 4) + -(-stored * codec.field_bits(number) // 32)
            escapes = candidates - fits
            sizes[codec] = 4 * (words + escape_words(escapes, number.bits // 8)), escapes
    return sizes


def _quantised_sizes(matrix: np.ndarray, kind: str) -> dict[Codec, tuple[int, int]]:
    """(bytes, escapes) of a float matrix as integers, with a bitmap and without."""
    rows, columns = matrix.shape
    width = INTEGER_BITS[kind]
    nonzero = int(np.count_nonzero(quantise(matrix, width, where="array to be quantised").values))
    segments = rows * -(-columns // min(SEGMENT, columns))
    fixed = segments + -(-rows * -(-columns // GROUP) // 2)
    with_bitmap = fixed + rows * bitmap.words_per_row(columns) + -(-nonzero * width // 32)
    without = fixed + -(-matrix.size * width // 32)
    sized = {f"{kind}": with_bitmap, f"dense-{kind}": without}
    return {parse_codec(name): (4 * words, 0) for name, words in sized.items()}


def _covered(bits: np.ndarray, number: FloatFormat, widths: Sequence[int]) -> dict[int, int]:
    """How many elements of a matrix fit the windows of their segments, by exponent bits."""
    rows, columns = bits.shape
    segment = min(SEGMENT, columns)
    spare = -columns % segment
    step = block_rows(columns)
    covered = dict.fromkeys(widths, 0)
    for row in range(0, rows, step):  # block by block: a histogram is 256 counts for every segment
        block = bits[row : row + step]
        if spare:
            block = np.pad(block, ((0, 0), (0, spare)))
        histogram = exponent_histogram(exponents_of(block.reshape(-1, segment), number), number)
        for width in widths:
            covered[width] += int(best_windows(histogram, width)[1].sum())
    return covered
