// A segment's elements in the order of columns, with AVX2.
#ifndef ENDOR_JAX_KERNELS_NATIVE_ELEMENTS_AVX2_H_
#define ENDOR_JAX_KERNELS_NATIVE_ELEMENTS_AVX2_H_

#include <immintrin.h>

#include <cstring>

#include "byte_shuffles.h"
#include "fields_avx2.h"
#include "matrix.h"

namespace endor {
namespace {

constexpr Spread16 kSpread16 = all_spread16();

// For vpermd: which of 8 consecutive elements a column gets, or a negative number for zero.
struct alignas(64) Spread32 {
  int8_t of[256][8];
};

constexpr Spread32 all_spread32() {
  Spread32 made{};
  for (int bits = 0; bits < 256; ++bits) {
    int taken = 0;
    for (int column = 0; column < 8; ++column) {
      const bool stored = bits >> column & 1;
      made.of[bits][column] = static_cast<int8_t>(stored ? taken : -1);
      taken += stored;
    }
  }
  return made;
}

constexpr Spread32 kSpread32 = all_spread32();

// The elements of a segment, and room for two vectors behind the last.
struct alignas(64) Buffer {
  uint8_t bytes[4 * kSegment + 64];
};

inline int64_t stored_fields(const Segment& segment) {
  int64_t count = 0;
  int64_t column = 0;
  for (; column + 64 <= segment.columns; column += 64) {
    uint64_t words;
    std::memcpy(&words, segment.bitmap + column / 32, 8);
    count += __builtin_popcountll(words);
  }
  if (column + 32 <= segment.columns) count += __builtin_popcount(segment.bitmap[column / 32]);
  return segment.columns % 32 == 0 ? count : count + __builtin_popcount(last_word(segment));
}

inline __m256i spread16(const uint8_t* first, const uint8_t* second, uint32_t bits) {
  return _mm256_shuffle_epi8(load_halves(first, second),
                             load_halves(kSpread16.of[bits & 0xff], kSpread16.of[bits >> 8 & 0xff]));
}

inline __m256i spread32(const uint8_t* from, uint32_t bits) {
  const auto* row = reinterpret_cast<const __m128i*>(kSpread32.of[bits & 0xff]);
  const __m256i index = _mm256_cvtepi8_epi32(_mm_loadl_epi64(row));
  return _mm256_andnot_si256(_mm256_srai_epi32(index, 31), _mm256_permutevar8x32_epi32(load(from), index));
}

// Behind as many elements as bits are set (in 64 bits, which saves conversions).
template <int kBytes>
inline const uint8_t* after(const uint8_t* elements, uint64_t bits) {
  return elements + static_cast<uint64_t>(kBytes) * static_cast<uint64_t>(__builtin_popcountll(bits));
}

// Moves elements to those of 32 columns whose bits are set; `put` gets vectors, zeros where nothing is stored.
// Returns where the next elements are.
template <int kBytes, class Put>
ENDOR_INLINED const uint8_t* spread(const uint8_t* from, uint32_t word, int64_t column, Put put) {
  // Each byte's elements are found from the word, not from the byte before: nothing waits.
  const uint8_t* const second = after<kBytes>(from, word & 0xff);
  const uint8_t* const third = after<kBytes>(from, word & 0xffff);
  const uint8_t* const fourth = after<kBytes>(from, word & 0xffffff);
  if constexpr (kBytes == 2) {
    put(column, spread16(from, second, word));
    put(column + 16, spread16(third, fourth, word >> 16));
  } else {
    put(column, spread32(from, word));
    put(column + 8, spread32(second, word >> 8));
    put(column + 16, spread32(third, word >> 16));
    put(column + 24, spread32(fourth, word >> 24));
  }
  return after<kBytes>(from, word);
}

// bfloat16 bits of 8 products, in the upper halves of their lanes; what is below them is not cleared.
ENDOR_INLINED __m256i round_to_upper(__m256 products) {
  const __m256i bits = _mm256_castps_si256(products);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}

// Elements of what was decoded for consecutive columns of one group: integers are multiplied with its scale.
template <class F>
ENDOR_INLINED __m256i scaled(const Segment& segment, int64_t column, __m256i decoded) {
  if constexpr (!F::kIntegers) return decoded;
  const __m256 scale = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(scale_bits(segment, column))));
  const auto product = [&](__m256i integers) { return _mm256_mul_ps(_mm256_cvtepi32_ps(integers), scale); };
  if constexpr (F::kNumber == Number::kFloat32) {
    return _mm256_castps_si256(product(decoded));
  } else if constexpr (F::kNumber == Number::kFloat16) {
    const __m256 low = product(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(decoded)));
    const __m256 high = product(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(decoded, 1)));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT)),
                                   _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT), 1);
  } else {
    const __m256i even = round_to_upper(product(_mm256_srai_epi32(_mm256_slli_epi32(decoded, 16), 16)));
    const __m256i odd = round_to_upper(product(_mm256_srai_epi32(decoded, 16)));
    return _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
  }
}

// What a segment has stored, one after another: elements where they are in the part, or decoded into `buffer`,
// integers without their scales.
template <class F>
ENDOR_INLINED const uint8_t* stored(const FieldDecoder<F>& decoder, const Segment& segment, Buffer& buffer) {
  if constexpr (F::kRaw) return segment.bytes + (segment.position >> 3);
  decoder.decode(segment, stored_fields(segment), [&](int64_t i, __m256i elements) {
    store(buffer.bytes + FieldDecoder<F>::kBytes * i, elements);
  });
  return buffer.bytes;
}

// Calls `use(column, word)` for the words of a segment's bitmap.
template <class Use>
ENDOR_INLINED void each_word(const Segment& segment, Use use) {
  const uint32_t* const bitmap = segment.bitmap;
  const int64_t columns = segment.columns;
  for (int64_t column = 0; column < columns; column += 32) {
    // One call: of two, the compiler would put neither in place.
    use(column, columns - column >= 32 ? bitmap[column / 32] : last_word(segment));
  }
}

// Calls `put(column, elements)` for every vector of a segment, up to a multiple of 32 columns with a bitmap, with
// zeros where nothing is stored. Without a bitmap there is anything behind the last column.
template <class F, class Put>
inline void each_vector(const FieldDecoder<F>& decoder, const Segment& segment, Put put) {
  constexpr int kBytes = FieldDecoder<F>::kBytes, kColumns = FieldDecoder<F>::kColumns;
  const auto put_scaled = [&](int64_t column, __m256i decoded) {
    put(column, scaled<F>(segment, column, decoded));
  };
  if constexpr (F::kBitmap) {
    Buffer buffer;
    const uint8_t* from = stored(decoder, segment, buffer);
    each_word(segment, [&](int64_t column, uint32_t word) {
      if (F::kRaw) prefetch(from);
      from = spread<kBytes>(from, word, column, put_scaled);
    });
  } else if constexpr (!F::kRaw) {
    decoder.decode(segment, segment.columns, put_scaled);
  } else {
    const uint8_t* const from = segment.bytes + (segment.position >> 3);
    const int64_t columns = segment.columns;
    for (int64_t c = 0; c < columns; c += kColumns) put(c, load(from + kBytes * c));
  }
}

// A segment's elements in the order of columns, the escapes among them, and 64 bytes of zeros behind them.
template <class F>
inline void fill(Buffer& buffer, const FieldDecoder<F>& decoder, const Segment& segment) {
  constexpr int kBytes = FieldDecoder<F>::kBytes;
  each_vector(decoder, segment, [&](int64_t c, __m256i elements) { store(buffer.bytes + kBytes * c, elements); });
  uint8_t* const end = buffer.bytes + kBytes * segment.columns;
  store(end, _mm256_setzero_si256());
  store(end + 32, _mm256_setzero_si256());
  for (int64_t i = 0; i < segment.escapes.count; ++i) {
    const uint32_t bits = escape_bits(segment.escapes, i, F::kNumber);
    std::memcpy(buffer.bytes + kBytes * (segment.escapes.index[i] - segment.first_index), &bits, kBytes);
  }
}

}  // namespace
}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_ELEMENTS_AVX2_H_
