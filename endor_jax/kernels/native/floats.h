// Scalar conversions between the number formats, exact or rounded to nearest even.
#ifndef ENDOR_JAX_KERNELS_NATIVE_FLOATS_H_
#define ENDOR_JAX_KERNELS_NATIVE_FLOATS_H_

#include <cstdint>
#include <cstring>

#include "inlined.h"
#include "matrix.h"

namespace endor {

ENDOR_INLINED float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

ENDOR_INLINED uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// float16 to float32, in integers: whether the processor flushes subnormals to zero changes nothing.
ENDOR_INLINED uint32_t widen_float16(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31, mantissa = half & 0x3ffu;
  if (exponent == 31) return sign | 0x7f800000u | mantissa << 13;
  if (exponent != 0) return sign | (exponent + 112) << 23 | mantissa << 13;
  if (mantissa == 0) return sign;
  const int shift = __builtin_clz(mantissa) - 21;  // brings the leading one to bit 10
  return sign | static_cast<uint32_t>(113 - shift) << 23 | ((mantissa << shift) & 0x3ffu) << 13;
}

// The float32 bits of an element of any format.
ENDOR_INLINED uint32_t widen(uint32_t bits, Number number) {
  if (number == Number::kFloat32) return bits;
  return number == Number::kBFloat16 ? bits << 16 : widen_float16(bits);
}

// float32 to bfloat16 bits, rounded to nearest even; NaN stays NaN.
ENDOR_INLINED uint16_t round_to_bfloat16(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// float32 to float16 bits, rounded to nearest even; NaN stays NaN.
ENDOR_INLINED uint16_t round_to_float16(float value) {
  const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (magnitude < 0x33000001u) return sign;                                    // to nothing
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  // Bits of the mantissa that are lost: 13, and one more for every step below the smallest normal exponent.
  const int lost = exponent < -14 ? 13 + (-14 - exponent) : 13;
  const uint32_t kept = mantissa >> lost, rest = mantissa & ((1u << lost) - 1), half = 1u << (lost - 1);
  const uint32_t rounded = kept + (rest > half || (rest == half && (kept & 1)) ? 1 : 0);
  // The leading one of a normal number adds 1 to the exponent field, and so does a carry out of the mantissa.
  const uint32_t field = exponent < -14 ? 0u : static_cast<uint32_t>(exponent + 14) << 10;
  return static_cast<uint16_t>(sign | (field + rounded));
}

// The element bits of a float32, rounded to nearest even.
template <Number kNumber>
ENDOR_INLINED uint32_t rounded(float value) {
  if constexpr (kNumber == Number::kBFloat16) return round_to_bfloat16(value);
  if constexpr (kNumber == Number::kFloat16) return round_to_float16(value);
  return bits_of_float(value);
}

}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_FLOATS_H_
