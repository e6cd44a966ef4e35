// Columns of a dense matrix in AVX-512 registers, and how often their exponents occur.
#ifndef ENDOR_JAX_KERNELS_NATIVE_EXPONENTS_AVX512_H_
#define ENDOR_JAX_KERNELS_NATIVE_EXPONENTS_AVX512_H_

#include <immintrin.h>

#include <cstring>

#include "field_packer_avx512.h"
#include "matrix.h"

namespace endor {
namespace {

// 32 columns of elements.
template <Number kNumber>
struct Columns {
  static constexpr bool kWide = kNumber == Number::kFloat32;
  __m512i half[kWide ? 2 : 1];

  // Columns from `bits` on, of which there are `count`; the others are 0.
  static Columns load(const uint8_t* bits, int64_t count) {
    if (count >= 32) return {{_mm512_loadu_si512(bits)}};
    return {{_mm512_maskz_loadu_epi16(static_cast<__mmask32>(low_bits(count)), bits)}};
  }

  uint32_t nonzero() const { return _mm512_test_epi16_mask(half[0], half[0]); }
};

template <>
inline Columns<Number::kFloat32> Columns<Number::kFloat32>::load(const uint8_t* bits, int64_t count) {
  if (count >= 32) return {{_mm512_loadu_si512(bits), _mm512_loadu_si512(bits + 64)}};
  const uint64_t present = low_bits(count);
  return {{_mm512_maskz_loadu_epi32(static_cast<__mmask16>(present), bits),
           _mm512_maskz_loadu_epi32(static_cast<__mmask16>(present >> 16), bits + 64)}};
}

template <>
inline uint32_t Columns<Number::kFloat32>::nonzero() const {
  return _mm512_test_epi32_mask(half[0], half[0]) |
         static_cast<uint32_t>(_mm512_test_epi32_mask(half[1], half[1])) << 16;
}

// The exponents of 64 columns as bytes, in any order.
template <Number kNumber>
__m512i exponent_bytes(const Columns<kNumber>& first, const Columns<kNumber>& second) {
  constexpr int kDown = 1 + mantissa_bits(kNumber);
  if constexpr (kNumber == Number::kFloat32) {
    const auto exponents = [](__m512i x) { return _mm512_srli_epi32(_mm512_slli_epi32(x, 1), kDown); };
    return _mm512_packus_epi16(
        _mm512_packus_epi32(exponents(first.half[0]), exponents(first.half[1])),
        _mm512_packus_epi32(exponents(second.half[0]), exponents(second.half[1])));
  } else {
    const auto exponents = [](__m512i x) { return _mm512_srli_epi16(_mm512_slli_epi16(x, 1), kDown); };
    return _mm512_packus_epi16(exponents(first.half[0]), exponents(second.half[0]));
  }
}

int smallest_byte(__m512i bytes) {
  const __m256i half = _mm256_min_epu8(_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64(bytes, 1));
  const __m128i part = _mm_min_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i words = _mm_min_epu8(part, _mm_srli_epi16(part, 8));
  return _mm_extract_epi8(_mm_minpos_epu16(_mm_and_si128(words, _mm_set1_epi16(0xff))), 0);
}

// How many of `count` exponents, a multiple of 64, are a given one. Each question takes a pass over them; after
// several all are counted one by one.
class ExponentCounts {
 public:
  ExponentCounts(const uint8_t* exponents, int64_t count) : exponents_(exponents), count_(count) {}

  int64_t operator()(int exponent) {
    if (asked_++ < kPasses) return pass(exponent);
    if (asked_ == kPasses + 1) count_all();
    return histogram_[0][exponent] + histogram_[1][exponent];
  }

 private:
  static constexpr int kPasses = 10;

  int64_t pass(int exponent) const {
    const __m512i wanted = _mm512_set1_epi8(static_cast<char>(exponent));
    int64_t count = 0;
    for (int64_t c = 0; c < count_; c += 64) {
      count += __builtin_popcountll(_mm512_cmpeq_epi8_mask(_mm512_load_si512(exponents_ + c), wanted));
    }
    return count;
  }

  void count_all() {
    std::memset(histogram_, 0, sizeof histogram_);
    for (int64_t c = 0; c < count_; c += 2) {
      ++histogram_[0][exponents_[c]];
      ++histogram_[1][exponents_[c + 1]];
    }
  }

  const uint8_t* exponents_;
  int64_t count_;
  int asked_ = 0;
  uint16_t histogram_[2][256];
};

}  // namespace
}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_EXPONENTS_AVX512_H_
