"""docs/format.md once more, as plain loops over integers: written from the document, not from the code.

Nothing of `endor_jax` is imported. An array is a flat list of its elements' bits (of its bytes for a dense
tensor; under an integer codec, of pairs of q and the bits of its group's scale). Slow, and meant to be read
beside the document, section by section.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

EXPONENT_BITS = {"bfloat16": 8, "float16": 5, "float32": 8}
MANTISSA_BITS = {"bfloat16": 7, "float16": 10, "float32": 23}


@dataclass
class Tensor:
    """codec None: stored dense, `item_bytes` bytes per element."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    codec: str | None
    item_bytes: int

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def segment(self) -> int:
        return min(1024, self.columns)

    @property
    def segments(self) -> int:
        return ceil_div(self.columns, self.segment)

    @property
    def has_bitmap(self) -> bool:
        return not self.codec.startswith("dense-")

    @property
    def groups(self) -> int:
        return ceil_div(self.columns, 128)

    @property
    def packed_bits(self) -> int | None:
        """k, None for raw and integers."""
        return int(self.codec.split(":")[1]) if ":" in self.codec else None

    @property
    def integer_bits(self) -> int | None:
        return {"int8": 8, "int4": 4}.get(self.codec.removeprefix("dense-"))

    @property
    def field_bits(self) -> int:
        if self.integer_bits is not None:
            return self.integer_bits
        if self.packed_bits is None:
            return 8 * self.item_bytes
        return 1 + self.packed_bits + MANTISSA_BITS[self.dtype]


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


def align(value: int, words: int) -> int:
    return ceil_div(value, words) * words


def exponent_of(tensor: Tensor, bits: int) -> int:
    return (bits >> MANTISSA_BITS[tensor.dtype]) % (1 << EXPONENT_BITS[tensor.dtype])


# "Part": where everything is


@dataclass
class Places:
    header: dict[str, int]
    data: dict[str, int]
    bitmap: dict[str, int]
    offsets: dict[str, int]
    bases: dict[str, int]
    scales: dict[str, int]
    streams: int


def share_rows(tensor: Tensor, parts: int) -> int:
    return ceil_div(tensor.rows, parts)


def places(tensors: list[Tensor], parts: int) -> Places:
    found = Places({}, {}, {}, {}, {}, {}, 0)
    for tensor in tensors:
        if tensor.codec is not None:
            found.header[tensor.name] = 2 * len(found.header)
    at = align(2 * len(found.header), 64)
    for tensor in tensors:
        if tensor.codec is None:
            found.data[tensor.name] = at
            at = align(at + ceil_div(prod(tensor.shape) * tensor.item_bytes, 4), 64)
            continue
        rows = share_rows(tensor, parts)
        if tensor.has_bitmap:
            found.bitmap[tensor.name] = at
            at = align(at + rows * ceil_div(tensor.columns, 32), 64)
        found.offsets[tensor.name] = at
        at = align(at + rows * tensor.segments, 64)
        if tensor.packed_bits is not None:
            found.bases[tensor.name] = at
            at = align(at + ceil_div(rows * tensor.segments, 4), 64)
        if tensor.integer_bits is not None:
            found.scales[tensor.name] = at
            at = align(at + ceil_div(rows * tensor.groups, 2), 64)
    found.streams = at
    return found


# "Codecs": which elements have a field, and which


def fits(tensor: Tensor, bits: int, base: int) -> bool:
    exponent = exponent_of(tensor, bits)
    if exponent == 0 or exponent == (1 << EXPONENT_BITS[tensor.dtype]) - 1:
        return False
    return base <= exponent < base + (1 << tensor.packed_bits)


def base_of(tensor: Tensor, segment: list[int]) -> int:
    best, most = 0, 0
    for base in range(256 - (1 << tensor.packed_bits) + 1):
        count = sum(fits(tensor, bits, base) for bits in segment)
        if count > most:
            best, most = base, count
    return best


def field_of(tensor: Tensor, bits: int, base: int) -> int:
    if tensor.packed_bits is None:
        return bits
    mantissa_bits = MANTISSA_BITS[tensor.dtype]
    sign = bits >> (8 * tensor.item_bytes - 1)
    code = exponent_of(tensor, bits) - base
    mantissa = bits % (1 << mantissa_bits)
    return (sign << (tensor.packed_bits + mantissa_bits)) + (code << mantissa_bits) + mantissa


def element_of(tensor: Tensor, field: int, base: int) -> int:
    if tensor.packed_bits is None:
        return field
    mantissa_bits = MANTISSA_BITS[tensor.dtype]
    mantissa = field % (1 << mantissa_bits)
    code = (field >> mantissa_bits) % (1 << tensor.packed_bits)
    sign = field >> (tensor.packed_bits + mantissa_bits)
    return (sign << (8 * tensor.item_bytes - 1)) + ((code + base) << mantissa_bits) + mantissa


def round_to_even(value: Fraction) -> int:
    below = value.numerator // value.denominator
    rest = value - below
    return below + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1))


def number_of_float16(bits: int) -> Fraction:
    """A finite one without its sign."""
    exponent, mantissa = bits >> 10 & 31, bits & 1023
    return Fraction(2) ** (exponent - 25) * (1024 + mantissa) if exponent else Fraction(mantissa, 1 << 24)


def element_of_integer(tensor: Tensor, q: int, scale: int) -> int:
    """The bits of q times a scale, rounded to nearest even: exact rational arithmetic."""
    if q == 0:
        return 0
    product = abs(q) * number_of_float16(scale)
    mantissa_bits, exponent_bits = MANTISSA_BITS[tensor.dtype], EXPONENT_BITS[tensor.dtype]
    bias = (1 << (exponent_bits - 1)) - 1
    exponent = 1 - bias  # of subnormal numbers and of the smallest normal ones
    while product >= Fraction(2) ** (exponent + 1):
        exponent += 1
    steps = round_to_even(product / Fraction(2) ** (exponent - mantissa_bits))
    # The leading one of a normal number adds 1 to the exponent field, and so does a carry.
    magnitude = ((exponent + bias - 1) << mantissa_bits) + steps
    return ((q < 0) << (8 * tensor.item_bytes - 1)) + magnitude


# Encoding


def put_bits(words: list[int], position: int, value: int, width: int) -> None:
    for j in range(width):
        if value >> j & 1:
            words[(position + j) // 32] |= 1 << ((position + j) % 32)


def get_bits(words: list[int], position: int, width: int) -> int:
    return sum((words[(position + j) // 32] >> ((position + j) % 32) & 1) << j for j in range(width))


def encode_part(tensors: list[Tensor], arrays: dict[str, list[int]], part: int, parts: int) -> list[int]:
    """The words of part number `part`."""
    where = places(tensors, parts)
    words = [0] * where.streams
    at, longest = where.streams, 0
    escapes: dict[str, list[tuple[int, int]]] = {}
    for tensor in tensors:
        if tensor.codec is None:
            for i, byte in enumerate(arrays[tensor.name]):
                put_bits(words, 32 * where.data[tensor.name] + 8 * i, byte, 8)
            continue
        longest = max(longest, tensor.segment * tensor.field_bits)
        at = encode_tensor(words, tensor, arrays[tensor.name], part, parts, where, at, escapes)
    for tensor in tensors:
        if tensor.codec is None:
            continue
        listed = escapes[tensor.name]
        words[where.header[tensor.name]] = at
        words[where.header[tensor.name] + 1] = len(listed)
        data = at + len(listed)
        end = data + ceil_div(len(listed) * tensor.item_bytes, 4)
        at = align(end, 16)
        words += [0] * (at - len(words))
        for i, (index, bits) in enumerate(listed):
            words[data - len(listed) + i] = index
            put_bits(words, 32 * data + 8 * tensor.item_bytes * i, bits, 8 * tensor.item_bytes)
    return words + [0] * (16 + ceil_div(longest, 32))


def encode_tensor(
    words: list[int],
    tensor: Tensor,
    elements: list[int],
    part: int,
    parts: int,
    where: Places,
    stream: int,
    escapes: dict[str, list[tuple[int, int]]],
) -> int:
    """Writes sections and stream of one tensor; returns where the next stream starts."""
    rows, columns = share_rows(tensor, parts), tensor.columns
    position = 32 * stream
    escapes[tensor.name] = []
    for r in range(rows):
        row = part * rows + r
        for s in range(tensor.segments):
            number = r * tensor.segments + s
            words[where.offsets[tensor.name] + number] = position
            if row >= tensor.rows:
                continue
            start, stop = s * tensor.segment, min((s + 1) * tensor.segment, columns)
            segment = elements[row * columns + start : row * columns + stop]
            if tensor.integer_bits is not None:
                position = encode_integers(words, tensor, elements, (row, r, s), where, position)
                continue
            base = 0
            if tensor.packed_bits is not None:
                base = base_of(tensor, segment)
                put_bits(words, 32 * where.bases[tensor.name] + 8 * number, base, 8)
            for column, bits in enumerate(segment, start):
                good = tensor.packed_bits is None or fits(tensor, bits, base)
                if bits == 0 and tensor.has_bitmap:
                    continue
                if not good:
                    escapes[tensor.name].append((r * columns + column, bits))
                    if tensor.has_bitmap:
                        continue
                if tensor.has_bitmap:
                    bitmap = where.bitmap[tensor.name] + r * ceil_div(columns, 32)
                    put_bits(words, 32 * bitmap + column, 1, 1)
                end = align(ceil_div(position + tensor.field_bits, 32), 16)
                words += [0] * (end - len(words))
                put_bits(words, position, field_of(tensor, bits, base) if good else 0, tensor.field_bits)
                position += tensor.field_bits
    return align(ceil_div(position, 32), 16)


def encode_integers(
    words: list[int],
    tensor: Tensor,
    elements: list[tuple[int, int]],
    place: tuple[int, int, int],
    where: Places,
    position: int,
) -> int:
    """Writes one segment of a tensor whose elements are (q, scale of its group): row of the tensor, row of
    the part, number of the segment. Returns where the next field goes."""
    row, r, s = place
    for column in range(s * tensor.segment, min((s + 1) * tensor.segment, tensor.columns)):
        q, scale = elements[row * tensor.columns + column]
        if q != 0:  # so that the scale of a group of zeros stays 0
            number = r * tensor.groups + column // 128
            word = where.scales[tensor.name] + number // 2
            words[word] &= ~(0xFFFF << 16 * (number % 2))
            words[word] |= scale << 16 * (number % 2)
        if q == 0 and tensor.has_bitmap:
            continue
        if tensor.has_bitmap:
            put_bits(
                words, 32 * (where.bitmap[tensor.name] + r * ceil_div(tensor.columns, 32)) + column, 1, 1
            )
        end = align(ceil_div(position + tensor.field_bits, 32), 16)
        words += [0] * (end - len(words))
        put_bits(words, position, q % (1 << tensor.field_bits), tensor.field_bits)
        position += tensor.field_bits
    return position


# Decoding


def decode_part(words: list[int], tensors: list[Tensor], name: str, parts: int) -> list[int]:
    """The elements that one part holds of a tensor stored as fields, padding rows included."""
    (tensor,) = (t for t in tensors if t.name == name)
    where = places(tensors, parts)
    rows, columns = share_rows(tensor, parts), tensor.columns
    elements = [0] * (rows * columns)
    for r in range(rows):
        for s in range(tensor.segments):
            number = r * tensor.segments + s
            position = words[where.offsets[name] + number]
            base = 0
            if tensor.packed_bits is not None:
                base = get_bits(words, 32 * where.bases[name] + 8 * number, 8)
            for column in range(s * tensor.segment, min((s + 1) * tensor.segment, columns)):
                if tensor.has_bitmap:
                    bitmap = where.bitmap[name] + r * ceil_div(columns, 32)
                    if not get_bits(words, 32 * bitmap + column, 1):
                        continue
                field = get_bits(words, position, tensor.field_bits)
                if tensor.integer_bits is not None:
                    q = field - (field >> (tensor.field_bits - 1) << tensor.field_bits)
                    group = r * tensor.groups + column // 128
                    scale = get_bits(words, 32 * where.scales[name] + 16 * group, 16)
                    elements[r * columns + column] = element_of_integer(tensor, q, scale)
                else:
                    elements[r * columns + column] = element_of(tensor, field, base)
                position += tensor.field_bits
    start, count = words[where.header[name]], words[where.header[name] + 1]
    for i in range(count):
        bits = get_bits(words, 32 * (start + count) + 8 * tensor.item_bytes * i, 8 * tensor.item_bytes)
        elements[words[start + i]] = bits
    return elements


def decode(parts: list[list[int]], tensors: list[Tensor], name: str) -> list[int]:
    """All elements of a tensor stored as fields."""
    (tensor,) = (t for t in tensors if t.name == name)
    elements: list[int] = []
    for words in parts:
        elements += decode_part(words, tensors, name, len(parts))
    return elements[: prod(tensor.shape)]
