// Fields as elements, 16 of 16 bits or 8 of 32 at a time, with AVX2; integers without their scales.
#ifndef ENDOR_JAX_KERNELS_NATIVE_FIELDS_AVX2_H_
#define ENDOR_JAX_KERNELS_NATIVE_FIELDS_AVX2_H_

#include <immintrin.h>

#include "byte_shuffles.h"
#include "matrix.h"

namespace endor {
namespace {

constexpr AllFieldLanes<2> kFieldLanes16 = all_field_lanes<2>();
constexpr AllFieldLanes<4> kFieldLanes32 = all_field_lanes<4>();

inline __m256i load_halves(const uint8_t* low, const uint8_t* high) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(first),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
}

inline __m256i load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

inline void store(uint8_t* to, __m256i value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value); }

// Asks for what will be read of a stream in a while: the processor does so by itself only while it reads, and
// between reading and reading there is a segment's work. May be behind the part: nothing is read there.
inline void prefetch(const uint8_t* from) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(from) + 2048), _MM_HINT_T0);
}

// 16 integers of 4 bits, the first in the low or the high half of the first byte.
ENDOR_INLINED __m128i nibbles(const uint8_t* from, bool high_first) {
  const auto eight = [](const uint8_t* at) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)); };
  const __m128i mask = _mm_set1_epi8(15), sign = _mm_set1_epi8(8);
  const __m128i here = eight(from);
  const __m128i high = _mm_and_si128(_mm_srli_epi16(here, 4), mask);
  const __m128i low = _mm_and_si128(high_first ? eight(from + 1) : here, mask);
  const __m128i unsign = high_first ? _mm_unpacklo_epi8(high, low) : _mm_unpacklo_epi8(low, high);
  return _mm_sub_epi8(_mm_xor_si128(unsign, sign), sign);
}

// Packed fields as elements, integers as integers of an element's width.
template <class F>
class FieldDecoder {
 public:
  using Format = F;
  static constexpr int kBytes = element_bytes(F::kNumber);
  static constexpr int kColumns = 32 / kBytes;  // of a vector

  explicit FieldDecoder(int field_bits) : width_(field_bits) {
    if constexpr (F::kPacked) {
      constexpr int kBits = 8 * kBytes;
      const uint32_t keep = 1u << (kBits - 1) | ((1u << (width_ - 1)) - 1);
      keep_ = all(keep);
      down_ = _mm_cvtsi32_si128(kBits - width_);
      if constexpr (kBytes == 2) {
        lanes_ = kFieldLanes16.width(width_);
      } else {
        lanes_ = kFieldLanes32.width(width_);
      }
    }
  }

  // Calls `put(i, elements)` for each group of kColumns fields with at least one of the segment's first `count`.
  template <class Put>
  void decode(const Segment& segment, int64_t count, Put put) const {
    if constexpr (F::kIntegers) {
      decode_integers(segment, count, put);
    } else if constexpr (kBytes == 2) {
      // The lowest bits of a field are in the byte below its two: of fields of 9 bits never, of fields of 10
      // never either, because they begin at even bits.
      width_ <= 10 ? decode16<false>(segment, count, put) : decode16<true>(segment, count, put);
    } else {
      decode32(segment, count, put);
    }
  }

 private:
  static __m256i all(uint32_t value) {
    return kBytes == 2 ? _mm256_set1_epi16(static_cast<short>(value)) : _mm256_set1_epi32(static_cast<int>(value));
  }

  template <class Put>
  void decode_integers(const Segment& segment, int64_t count, Put put) const {
    const uint8_t* from = segment.bytes + (segment.position >> 3);
    const bool high_first = segment.position & 4;
    const int64_t width = width_;
    for (int64_t i = 0; i < count; i += kColumns) {
      prefetch(from);
      const __m128i integers =
          width == 4 ? nibbles(from, high_first) : _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      put(i, kBytes == 2 ? _mm256_cvtepi8_epi16(integers) : _mm256_cvtepi8_epi32(integers));
      from += kColumns * width / 8;
    }
  }

  template <bool kThreeBytes, class Put>
  void decode16(const Segment& segment, int64_t count, Put put) const {
    const FieldLanes<2>& lanes = lanes_[segment.position & 7];
    const __m256i top = load_halves(lanes.top, lanes.top), below = load_halves(lanes.below, lanes.below);
    // A multiplication shifts each lane by its own distance.
    const __m256i powers = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
    const __m256i low_byte = _mm256_set1_epi16(0xff);
    const __m256i factors =
        _mm256_and_si256(_mm256_shuffle_epi8(powers, load_halves(lanes.shift, lanes.shift)), low_byte);
    const __m256i base = all(segment.base);
    const uint8_t* from = segment.bytes + (segment.position >> 3);
    // Members would be loaded anew after every store: bytes may be anything's.
    const int64_t width = width_;
    const __m256i keep = keep_;
    const __m128i down = down_;
    for (int64_t i = 0; i < count; i += 16) {
      prefetch(from);
      const __m256i loaded = load_halves(from, from + width);
      __m256i field = _mm256_mullo_epi16(_mm256_shuffle_epi8(loaded, top), factors);
      if (kThreeBytes) {
        field = _mm256_or_si256(field, _mm256_mulhi_epu16(_mm256_shuffle_epi8(loaded, below), factors));
      }
      put(i, _mm256_add_epi16(_mm256_and_si256(_mm256_sra_epi16(field, down), keep), base));
      from += 2 * width;
    }
  }

  template <class Put>
  void decode32(const Segment& segment, int64_t count, Put put) const {
    const uint64_t second = (segment.position & 7) + 4 * width_;  // bit of the fifth field
    const FieldLanes<4>&low = lanes_[segment.position & 7], &high = lanes_[second & 7];
    const __m256i top = load_halves(low.top, high.top), below = load_halves(low.below, high.below);
    const __m256i up = load_halves(low.shift, high.shift), rest = _mm256_sub_epi32(_mm256_set1_epi32(32), up);
    const __m256i base = all(segment.base);
    const int64_t half = static_cast<int64_t>(second >> 3);
    const uint8_t* from = segment.bytes + (segment.position >> 3);
    const int64_t width = width_;
    const __m256i keep = keep_;
    const __m128i down = down_;
    for (int64_t i = 0; i < count; i += 8) {
      prefetch(from);
      const __m256i tops =
          _mm256_shuffle_epi8(load_halves(from + low.top_from, from + half + high.top_from), top);
      const __m256i belows = _mm256_shuffle_epi8(load_halves(from, from + half), below);
      const __m256i field = _mm256_or_si256(_mm256_sllv_epi32(tops, up), _mm256_srlv_epi32(belows, rest));
      put(i, _mm256_add_epi32(_mm256_and_si256(_mm256_sra_epi32(field, down), keep), base));
      from += width;
    }
  }

  int64_t width_;
  const FieldLanes<kBytes>* lanes_ = nullptr;
  __m128i down_;
  __m256i keep_;
};

}  // namespace
}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_FIELDS_AVX2_H_
