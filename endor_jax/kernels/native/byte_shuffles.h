// Tables for instruction sets that look up 16 bytes at a time (vpshufb, tbl): an index past 127 gives zero.
//
// Eight fields of b bits are b bytes, so all groups of eight fields of a segment begin the same number of bits
// into a byte, and one table entry serves the whole segment.
#ifndef ENDOR_JAX_KERNELS_NATIVE_BYTE_SHUFFLES_H_
#define ENDOR_JAX_KERNELS_NATIVE_BYTE_SHUFFLES_H_

#include <cstdint>

#include "inlined.h"

namespace endor {

constexpr uint8_t kZeroByte = 0x80;

// Brings consecutive fields of one width, the first of which starts `early` bits into byte 0, to lanes of
// kBytes bytes, each with its sign on top: top << shift | below >> (8 · kBytes − shift).
template <int kBytes>
struct alignas(16) FieldLanes {
  uint8_t top[16];    // the bytes that end with the field's last one, counted from byte `top_from`
  uint8_t below[16];  // the byte under them, as the highest of its lane
  uint8_t shift[16];  // a number of kBytes bytes per lane
  int64_t top_from;
};

template <int kBytes>
constexpr FieldLanes<kBytes> field_lanes(int width, int early) {
  FieldLanes<kBytes> made{};
  constexpr int kLanes = 16 / kBytes;
  made.top_from = (early + kLanes * width - 1) / 8 > 15 ? 1 : 0;
  for (int i = 0; i < 16; ++i) {
    const int last_bit = early + (i / kBytes + 1) * width - 1, byte = i % kBytes;
    const int top = last_bit / 8 - (kBytes - 1) + byte - static_cast<int>(made.top_from);
    const int below = last_bit / 8 - kBytes;
    made.top[i] = static_cast<uint8_t>(top);
    made.below[i] = byte == kBytes - 1 && below >= 0 ? static_cast<uint8_t>(below) : kZeroByte;
    made.shift[i] = byte == 0 ? static_cast<uint8_t>(7 - last_bit % 8) : 0;
  }
  return made;
}

// By width, from one more than half of the lane (a code of one bit) to one less than all of it.
template <int kBytes>
struct AllFieldLanes {
  static constexpr int kNarrowest = kBytes == 2 ? 9 : 25;
  FieldLanes<kBytes> of[7][8];  // width − kNarrowest, early

  ENDOR_INLINED constexpr const FieldLanes<kBytes>* width(int bits) const { return of[bits - kNarrowest]; }
};

template <int kBytes>
constexpr AllFieldLanes<kBytes> all_field_lanes() {
  AllFieldLanes<kBytes> made{};
  for (int i = 0; i < 7; ++i) {
    for (int early = 0; early < 8; ++early) {
      made.of[i][early] = field_lanes<kBytes>(AllFieldLanes<kBytes>::kNarrowest + i, early);
    }
  }
  return made;
}

// Moves consecutive elements of 16 bits to those of 8 columns whose bits are set, and zeros to the others.
struct alignas(64) Spread16 {
  uint8_t of[256][16];
};

constexpr Spread16 all_spread16() {
  Spread16 made{};
  for (int bits = 0; bits < 256; ++bits) {
    int taken = 0;
    for (int column = 0; column < 8; ++column) {
      const bool stored = bits >> column & 1;
      made.of[bits][2 * column] = static_cast<uint8_t>(stored ? 2 * taken : kZeroByte);
      made.of[bits][2 * column + 1] = static_cast<uint8_t>(stored ? 2 * taken + 1 : kZeroByte);
      taken += stored;
    }
  }
  return made;
}

}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_BYTE_SHUFFLES_H_
