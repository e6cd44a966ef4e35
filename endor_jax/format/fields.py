"""The field stream: n fields of b bits, one after the other, little-endian in uint32 words.

Field i occupies the bits i·b ... i·b + b − 1 of the stream, where bit j of the stream is bit j mod 32 of word
j // 32. A reader takes two neighbouring words and shifts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WORD_BITS = 32
# Fields are packed in groups of 32, which fill exactly b words, and this many groups at a time: the columns
# of one batch (256 KiB) stay in the second-level cache while they are combined.
GROUPS_PER_BATCH = 2048


def stream_words(count: int, width: int) -> int:
    """How many uint32 words `count` fields of `width` bits take."""
    return -(-count * width // WORD_BITS)


def pack(fields: np.ndarray, width: int) -> np.ndarray:
    """(n,) unsigned fields, each below 2^width, -> (stream_words(n, width),) uint32."""
    count = fields.shape[0]
    if width == 8 * fields.dtype.itemsize:
        spare = -count % (WORD_BITS // width)
        return np.concatenate([fields, np.zeros(spare, fields.dtype)]).view("<u4")
    groups = -(-count // WORD_BITS)
    stream = np.empty((groups, width), np.uint32)
    for start in range(0, groups, GROUPS_PER_BATCH):
        stop = min(start + GROUPS_PER_BATCH, groups)
        batch = fields[start * WORD_BITS : stop * WORD_BITS]
        columns = np.zeros((stop - start) * WORD_BITS, np.uint32)
        columns[: batch.shape[0]] = batch
        stream[start:stop] = _pack_groups(columns.reshape(-1, WORD_BITS).T.copy(), width).T
    return stream.reshape(-1)[: stream_words(count, width)]


def pack_signed(integers: np.ndarray, width: int) -> np.ndarray:
    """(n,) int8 -> (stream_words(n, width),) uint32, in two's complement of `width` bits, 8 or 4."""
    held = integers.view(np.uint8)
    if width == 4:  # two to a byte, the first one low
        if held.shape[0] % 2:
            held = np.append(held, np.uint8(0))
        held = (held[0::2] & np.uint8(15)) | (held[1::2] << np.uint8(4))
    return pack(held, 8)


def read_signed(words: np.ndarray, first: int, count: int, width: int) -> np.ndarray:
    """Fields first, ..., first + count − 1 of a stream that starts with words[0]: (count,) int8, from two's
    complement of `width` bits, 8 or 4."""
    held = words.view(np.uint8)
    if width == 8:
        return held[first : first + count].view(np.int8)
    pairs = held[first // 2 : -(-(first + count) // 2)]
    low, high = (pairs << np.uint8(4)).view(np.int8) >> 4, pairs.view(np.int8) >> 4
    return np.stack([low, high], axis=1).reshape(-1)[first % 2 :][:count]


def _pack_groups(columns: np.ndarray, width: int) -> np.ndarray:
    """(32, groups) fields -> (width, groups) words: field i of every group lands on the same bits."""
    words = np.zeros((width, columns.shape[1]), np.uint32)
    for i, column in enumerate(columns):
        word, shift = divmod(i * width, WORD_BITS)
        words[word] |= column << np.uint32(shift)
        if shift + width > WORD_BITS:
            words[word + 1] |= column >> np.uint32(WORD_BITS - shift)
    return words


def read(words: np.ndarray, positions: np.ndarray, width: int) -> np.ndarray:
    """The fields that start at the given bits of `words`.

    words: (m,) uint32; positions: (n,) integers, each + width at most 32·m; of one that is not, the field is
    anything. Returns (n,) uint32.
    """
    positions = positions.astype(np.uint64)
    index = np.minimum(positions // WORD_BITS, words.shape[0] - 1).astype(np.intp)
    # A field that ends with the last word has no second word: any will do, its bits are masked off.
    following = np.minimum(index + 1, words.shape[0] - 1)
    pair = words[index].astype(np.uint64) | (words[following].astype(np.uint64) << np.uint64(WORD_BITS))
    return ((pair >> (positions % WORD_BITS)) & np.uint64((1 << width) - 1)).astype(np.uint32)


def cut(words: np.ndarray, start: int, count: int) -> np.ndarray:
    """Bits start, ..., start + count − 1 of `words` as a stream of their own: (⌈count / 32⌉,) uint32, its
    unused bits 0."""
    first, shift = divmod(start, WORD_BITS)
    whole, spare = -(-count // WORD_BITS), -count % WORD_BITS
    stream = words[first : first + whole] >> np.uint32(shift)
    if shift:
        following = words[first + 1 : first + 1 + whole]
        stream[: following.shape[0]] |= following << np.uint32(WORD_BITS - shift)
    if spare:
        stream[-1:] &= np.uint32((1 << (WORD_BITS - spare)) - 1)
    return stream


def join(streams: Sequence[np.ndarray], counts: Sequence[int]) -> np.ndarray:
    """Streams of so many bits each, their unused bits 0, as one without gaps."""
    joined = np.zeros(-(-sum(counts) // WORD_BITS), np.uint32)
    start = 0
    for stream, count in zip(streams, counts, strict=True):
        first, shift = divmod(start, WORD_BITS)
        joined[first : first + stream.shape[0]] |= stream << np.uint32(shift)
        if shift:  # where the stream ends before the last word does, nothing is left over
            following = joined[first + 1 : first + 1 + stream.shape[0]]
            following |= stream[: following.shape[0]] >> np.uint32(WORD_BITS - shift)
        start += count
    return joined
