// A compressed matrix as the kernels see it: where its sections are in a part, and how a field becomes bits.
//
// docs/format.md is the norm; names here are those used there. Nothing a part holds is trusted: a segment's
// start is clamped into the part, escapes are checked, so that damage gives wrong values and never an access
// outside (docs/format.md, "Limits and damage").
#ifndef ENDOR_JAX_KERNELS_NATIVE_MATRIX_H_
#define ENDOR_JAX_KERNELS_NATIVE_MATRIX_H_

#include <cstdint>
#include <cstring>

#include "inlined.h"

namespace endor {

enum class Number : int32_t { kBFloat16 = 0, kFloat16 = 1, kFloat32 = 2 };

ENDOR_INLINED constexpr int element_bytes(Number number) { return number == Number::kFloat32 ? 4 : 2; }

ENDOR_INLINED constexpr int mantissa_bits(Number number) {
  return number == Number::kBFloat16 ? 7 : number == Number::kFloat16 ? 10 : 23;
}

// Columns that share an offset and a base; a shorter row is one segment.
constexpr int64_t kSegment = 1024;
// Columns that share a scale. A word of the bitmap lies in one group.
constexpr int64_t kGroup = 128;
// What a decoder may read behind the last field of a segment; the padding of a part is at least as long.
constexpr int64_t kReadAheadBytes = 64;

// What a field is: the element's bits, a packed float, or an integer of 8 or 4 bits that has a scale.
enum class Kind { kRaw, kPacked, kIntegers };

// `FieldLayout` of endor_jax/format/layout.py. Sections are given by the word of the part they start at;
// bitmap < 0: a codec without one; bases < 0: none, the codec is not packed; scales < 0: none, it has no integers.
struct Layout {
  Number number;
  int32_t field_bits;
  int64_t rows;
  int64_t columns;
  int64_t header;
  int64_t bitmap;
  int64_t offsets;
  int64_t bases;
  int64_t scales;
  int64_t escape_capacity;

  ENDOR_INLINED bool packed() const { return bases >= 0; }
  ENDOR_INLINED bool has_scales() const { return scales >= 0; }
  ENDOR_INLINED Kind kind() const {
    return has_scales() ? Kind::kIntegers : packed() ? Kind::kPacked : Kind::kRaw;
  }
  ENDOR_INLINED bool has_bitmap() const { return bitmap >= 0; }
  ENDOR_INLINED int64_t segment() const { return smaller(kSegment, columns); }
  ENDOR_INLINED int64_t segments() const { return (columns + segment() - 1) / segment(); }
  ENDOR_INLINED int64_t words_per_row() const { return (columns + 31) / 32; }
  ENDOR_INLINED int64_t groups() const { return (columns + kGroup - 1) / kGroup; }
  ENDOR_INLINED int64_t scale_words() const { return (rows * groups() + 1) / 2; }
};

// Escapes in ascending order: `count` indices into the part's matrix, and their element bits.
struct Escapes {
  const uint32_t* index;
  const uint8_t* bits;
  int64_t count;
};

// Some columns of one row: what a decoder needs to know of them.
struct Segment {
  const uint8_t* bytes;    // of the part
  uint64_t position;       // the bit where the first field starts
  const uint32_t* bitmap;  // a bit per column; null without a bitmap
  uint32_t base;           // of the exponent codes, in place: base << mantissa_bits
  const uint8_t* scales;   // of its groups, a float16 each; null without scales
  int64_t columns;
  Escapes escapes;         // of these columns: elements that replace what was decoded for them
  uint32_t first_index;    // of the first column: subtracted from an escape's index it gives a column
};

// The float16 scale of the group that a column of the segment lies in.
ENDOR_INLINED uint16_t scale_bits(const Segment& segment, int64_t column) {
  uint16_t bits;
  std::memcpy(&bits, segment.scales + 2 * (column / kGroup), 2);
  return bits;
}

// The bits of the segment's last columns, which do not fill a word.
ENDOR_INLINED uint32_t last_word(const Segment& segment) {
  return segment.bitmap[segment.columns / 32] & ((1u << segment.columns % 32) - 1);
}

// One part's share of a matrix.
class PartView {
 public:
  // Null if the part can be read as `layout` says, else what is wrong with it.
  static ENDOR_INLINED const char* problem(const Layout& layout, int64_t words) {
    const auto number = static_cast<int32_t>(layout.number);
    if (layout.rows <= 0 || layout.columns <= 0 || number < 0 || number > 2) return "this is no matrix";
    const int64_t segments = layout.rows * layout.segments();
    const int bits = 8 * element_bytes(layout.number), b = layout.field_bits;
    // Tables have an entry for every width there is.
    const bool width = layout.has_scales() ? !layout.packed() && (b == 8 || b == 4)
                       : layout.packed()   ? b > mantissa_bits(layout.number) + 1 && b < bits
                                           : b == bits;
    if (!width) return "the fields have a width that no codec has";
    const bool inside = layout.header >= 0 && layout.header + 2 <= words && layout.offsets >= 0 &&
                        layout.offsets + segments <= words &&
                        (!layout.has_bitmap() || layout.bitmap + layout.rows * layout.words_per_row() <= words) &&
                        (!layout.packed() || layout.bases + (segments + 3) / 4 <= words) &&
                        (!layout.has_scales() || layout.scales + layout.scale_words() <= words) &&
                        32 * words >= layout.segment() * layout.field_bits + 8 * kReadAheadBytes + kFirstBit;
    return inside ? nullptr : "the part is shorter than its layout says";
  }

  ENDOR_INLINED PartView(const Layout& layout, const uint32_t* words, int64_t count)
      : layout_(layout),
        words_(words),
        count_(count),
        last_bit_(32 * count - layout.segment() * layout.field_bits - 8 * kReadAheadBytes) {}

  ENDOR_INLINED const Layout& layout() const { return layout_; }

  ENDOR_INLINED const uint32_t* bitmap_row(int64_t row) const {
    return words_ + layout_.bitmap + row * layout_.words_per_row();
  }

  // The scales of the groups of a row from the one with column `first` on.
  ENDOR_INLINED const uint8_t* scales_from(int64_t row, int64_t first) const {
    if (!layout_.has_scales()) return nullptr;
    const auto* scales = reinterpret_cast<const uint8_t*>(words_ + layout_.scales);
    return scales + 2 * (row * layout_.groups() + first / kGroup);
  }

  // Segment `number` of a row, without its escapes.
  ENDOR_INLINED Segment segment(int64_t row, int64_t number) const {
    const int64_t index = row * layout_.segments() + number;
    const uint64_t offset = words_[layout_.offsets + index];
    const uint32_t base = layout_.packed() ? reinterpret_cast<const uint8_t*>(words_ + layout_.bases)[index] : 0;
    const int64_t first = number * layout_.segment();
    const uint64_t clamped = offset < kFirstBit ? kFirstBit : smaller(offset, last_bit_);
    return {reinterpret_cast<const uint8_t*>(words_), clamped,
            layout_.has_bitmap() ? bitmap_row(row) + first / 32 : nullptr, base << mantissa_bits(layout_.number),
            scales_from(row, first), smaller(layout_.segment(), layout_.columns - first),
            Escapes{nullptr, nullptr, 0},
            static_cast<uint32_t>(row * layout_.columns + first)};
  }

  // The escapes of rows first, ..., last − 1. Of a damaged list anything, also indices of other rows.
  ENDOR_INLINED Escapes escapes(int64_t first, int64_t last) const {
    const int64_t start = words_[layout_.header], listed = words_[layout_.header + 1];
    const int64_t value_words = (listed * element_bytes(layout_.number) + 3) / 4;
    if (start + listed + value_words > count_) return {nullptr, nullptr, 0};
    const uint32_t* index = words_ + start;
    const int64_t count = smaller(listed, layout_.escape_capacity);
    const uint32_t* from = first_not_below(index, count, static_cast<uint64_t>(first * layout_.columns));
    const int64_t left = count - (from - index);
    const uint32_t* to = first_not_below(from, left, static_cast<uint64_t>(last * layout_.columns));
    const auto* bits = reinterpret_cast<const uint8_t*>(index + listed);
    return {from, bits + (from - index) * element_bytes(layout_.number), to - from};
  }

 private:
  // Streams start behind the header, so no valid field starts before this bit; a decoder may read from one
  // word before a field on.
  static constexpr int64_t kFirstBit = 64;

  Layout layout_;
  const uint32_t* words_;
  int64_t count_;
  uint64_t last_bit_;
};

// The element bits of entry i, in the low bits of a word.
ENDOR_INLINED uint32_t escape_bits(const Escapes& escapes, int64_t i, Number number) {
  uint32_t bits = 0;
  const int bytes = element_bytes(number);
  std::memcpy(&bits, escapes.bits + i * bytes, bytes);
  return bits;
}

}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_MATRIX_H_
