// Fields in the lanes of AVX-512 registers, joined without gaps.
#ifndef ENDOR_JAX_KERNELS_NATIVE_FIELD_PACKER_AVX512_H_
#define ENDOR_JAX_KERNELS_NATIVE_FIELD_PACKER_AVX512_H_

#include <immintrin.h>

#include "matrix.h"

namespace endor {
namespace {

constexpr uint64_t low_bits(int64_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

// Puts 8 lanes of `lane_bits` bits each, without gaps, into the first `lane_bits` bytes.
class LaneJoiner {
 public:
  explicit LaneJoiner(int lane_bits) {
    alignas(64) uint8_t even[64] = {}, odd[64] = {};
    alignas(64) uint64_t up[8], down[8];
    for (int lane = 0; lane < 8; ++lane) {
      const int first_bit = lane * lane_bits, last_bit = first_bit + lane_bits - 1;
      up[lane] = static_cast<uint64_t>(first_bit % 8);
      down[lane] = static_cast<uint64_t>(64 - first_bit % 8);
      for (int byte = first_bit / 8; byte <= last_bit / 8; ++byte) {
        // Byte 8 of a shifted lane is what its 64 bits lost on top.
        const int of_lane = byte - first_bit / 8;
        const int source = of_lane < 8 ? 8 * lane + of_lane : 64 + 8 * lane;
        (lane % 2 == 0 ? even : odd)[byte] = static_cast<uint8_t>(source);
        (lane % 2 == 0 ? in_even_ : in_odd_) |= 1ull << byte;
      }
    }
    even_ = _mm512_load_si512(even);
    odd_ = _mm512_load_si512(odd);
    up_ = _mm512_load_si512(up);
    down_ = _mm512_load_si512(down);
  }

  __m512i operator()(__m512i lanes) const {
    const __m512i low = _mm512_sllv_epi64(lanes, up_), high = _mm512_srlv_epi64(lanes, down_);
    return _mm512_or_si512(_mm512_maskz_permutex2var_epi8(in_even_, low, even_, high),
                           _mm512_maskz_permutex2var_epi8(in_odd_, low, odd_, high));
  }

 private:
  __mmask64 in_even_ = 0, in_odd_ = 0;
  __m512i even_, odd_, up_, down_;
};

// Registers of fields, 32 in 16 bits each or 16 in 32, as consecutive fields of `width` bits, which is less.
template <bool kWide>
class FieldPacker {
 public:
  explicit FieldPacker(int width)
      : join_((kWide ? 2 : 4) * width),
        first_of_two_(_mm512_set1_epi32(static_cast<int>(low_bits(width)))),
        first_half_(_mm512_set1_epi64(static_cast<long long>(low_bits(kWide ? width : 2 * width)))),
        down_two_(_mm_cvtsi32_si128(16 - (kWide ? 16 : width))),
        down_half_(_mm_cvtsi32_si128(32 - (kWide ? width : 2 * width))) {}

  // The bytes behind the fields are 0.
  __m512i operator()(__m512i fields) const {
    __m512i x = fields;
    if constexpr (!kWide) x = select(first_of_two_, x, _mm512_srl_epi32(x, down_two_));
    return join_(select(first_half_, x, _mm512_srl_epi64(x, down_half_)));
  }

 private:
  // The bits of `a` where `mask` is set, elsewhere those of `b`.
  static __m512i select(__m512i mask, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi64(mask, a, b, 0xca);
  }

  LaneJoiner join_;
  __m512i first_of_two_, first_half_;
  __m128i down_two_, down_half_;
};

}  // namespace
}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_FIELD_PACKER_AVX512_H_
