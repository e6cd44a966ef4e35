// The loops over rows and segments that all encoders share, and the rule by which a segment's base is chosen.
//
// An encoder is a struct with
//   template <Format> static CountedSegment count(const uint8_t* bits, int64_t columns, int window);
//   template <Format> struct Writer { Writer(const DenseMatrix&, const EncodedPieces&);
//                                     void add(const DenseSegment&); bool finish(); };
// and lives in an anonymous namespace, as these loops do (rows.h says why).

#include "encode.h"
#include "rows.h"

namespace endor {
namespace {

struct CountedSegment {
  int base;
  int64_t fields, nonzero;
};

// Some columns of one row of a dense matrix.
struct DenseSegment {
  const uint8_t* bits;
  int64_t columns;
  int base;          // the exponent that has code 0
  uint32_t index;    // of the first element, in the matrix
  uint32_t* bitmap;  // the words of these columns
};

// The window of exponents under which most elements fit, of several the one with the smallest base; base 0 if
// nothing can fit.
struct Window {
  int base;
  int64_t covered;
};

// lowest, highest: of the `packable` elements' exponents (neither 0 nor all ones). `count(e)` is how many of
// them have exponent e; it is asked in descending order from `highest` on, as far as need be.
template <class Count>
Window best_window(int lowest, int highest, int64_t packable, int width, Count&& count) {
  if (packable == 0) return {0, 0};
  const int first = highest - width + 1;  // a base above this one covers less, or the same with a larger base
  if (lowest >= first) return {first < 0 ? 0 : first, packable};
  int64_t counts[256];
  int64_t covered = 0;
  for (int e = highest; e >= first; --e) covered += counts[e] = count(e);
  int64_t unseen = packable - covered;
  Window best = {first, covered};
  for (int base = first - 1; base >= 0; --base) {
    covered -= counts[base + width];
    if (covered + unseen < best.covered) break;  // no base further down can catch up
    counts[base] = count(base);
    covered += counts[base];
    unseen -= counts[base];
    if (covered >= best.covered) best = {base, covered};
  }
  return best;
}

template <class Encoder>
EncodedCounts count_rows(const DenseMatrix& matrix, uint8_t* bases, int64_t* fields) {
  const Layout& layout = matrix.layout;
  EncodedCounts sums = {};
  with_format<false>(layout, [&](auto format) {
    using F = decltype(format);
    const int64_t segments = layout.segments(), bytes = element_bytes(F::kNumber);
    for (int64_t i = 0; i < layout.rows * segments; ++i) {
      const int64_t first = i % segments * layout.segment();
      const int64_t columns = smaller(layout.segment(), layout.columns - first);
      const uint8_t* bits = matrix.bits + (i / segments * layout.columns + first) * bytes;
      const CountedSegment counted = Encoder::template count<F>(bits, columns, matrix.window());
      if (F::kPacked) bases[i] = static_cast<uint8_t>(counted.base);
      const int64_t candidates = F::kBitmap ? counted.nonzero : columns;
      fields[i] = F::kBitmap ? counted.fields : columns;
      sums.fields += fields[i];
      sums.nonzero += counted.nonzero;
      sums.escapes += F::kPacked ? candidates - counted.fields : 0;
    }
  });
  return sums;
}

template <class Encoder>
bool write_rows(const DenseMatrix& matrix, const EncodedPieces& pieces) {
  const Layout& layout = matrix.layout;
  bool filled = false;
  with_format<false>(layout, [&](auto format) {
    using F = decltype(format);
    typename Encoder::template Writer<F> writer(matrix, pieces);
    const int64_t segments = layout.segments(), bytes = element_bytes(F::kNumber);
    for (int64_t i = 0; i < layout.rows * segments; ++i) {
      const int64_t row = i / segments, first = i % segments * layout.segment();
      const int64_t index = row * layout.columns + first;
      uint32_t* words = F::kBitmap ? pieces.bitmap + row * layout.words_per_row() + first / 32 : nullptr;
      writer.add({matrix.bits + index * bytes, smaller(layout.segment(), layout.columns - first),
                  F::kPacked ? pieces.bases[i] : 0, static_cast<uint32_t>(index), words});
    }
    filled = writer.finish();
  });
  return filled;
}

// Of magnitudes (elements without their sign) those from `first` on, `count` of them, fit a window.
struct FittingMagnitudes {
  uint32_t first, count;
};

template <Number kNumber>
ENDOR_INLINED FittingMagnitudes fitting_magnitudes(int base, int window) {
  constexpr int kMantissa = mantissa_bits(kNumber);
  constexpr int kAllOnes = (1 << (8 * element_bytes(kNumber) - 1 - kMantissa)) - 1;
  const int lowest = base < 1 ? 1 : base, end = smaller(base + window, kAllOnes);
  return {static_cast<uint32_t>(lowest) << kMantissa, static_cast<uint32_t>(end - lowest) << kMantissa};
}

}  // namespace
}  // namespace endor
