// AVX2 with FMA and F16C (Haswell, Zen and later): 16 columns of 16 bits, or 8 of 32, at a time.
//
// There is no instruction that moves consecutive elements to the columns whose bits are set; a table of byte
// shuffles serves 8 columns. A segment goes through buffers in the first-level cache: its fields are decoded,
// then moved to their columns, then copied, widened or multiplied. In the stream the fields of some columns
// begin at another bit each time, in the buffer their elements begin at a byte; and no loop waits for another.

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include "elements_avx2.h"
#include "fields_avx2.h"
#include "rows.h"

namespace endor {
namespace {

struct Avx2 {
  template <class F>
  using Decoder = FieldDecoder<F>;

  static void end_streaming() { _mm_sfence(); }

  template <class F>
  static void expand(const Decoder<F>& decoder, const Segment& segment, uint8_t* out, bool widened,
                     bool streaming);

  template <class F, InputFormat kInputs, int n>
  class Sums;

  template <class F, class Call>
  static void with_input_format(InputFormat, Call call) {
    call(std::integral_constant<InputFormat, F::kNumber == Number::kBFloat16 ? InputFormat::kFloat32EvenOdd
                                                                              : InputFormat::kFloat32>{});
  }
};

// The float32 values of 8 elements of 16 bits, as bits; NaN keeps its payload.
template <Number kNumber>
inline __m256i widen8(__m128i elements) {
  const __m256i wide = _mm256_cvtepu16_epi32(elements);
  if constexpr (kNumber == Number::kBFloat16) return _mm256_slli_epi32(wide, 16);
  const __m256 values = _mm256_cvtph_ps(elements);
  const __m256 nan = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
  if (_mm256_movemask_ps(nan) == 0) return _mm256_castps_si256(values);
  // The conversion sets the bit that makes a NaN a quiet one.
  const __m256i quiet = _mm256_andnot_si256(_mm256_slli_epi32(wide, 13), _mm256_set1_epi32(0x400000));
  return _mm256_andnot_si256(_mm256_and_si256(quiet, _mm256_castps_si256(nan)), _mm256_castps_si256(values));
}

// Writes a vector to memory, past the caches where that is wanted: then `to` is aligned.
template <bool kStream>
inline void write(uint8_t* to, __m256i value) {
  if constexpr (kStream) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), value);
  } else {
    store(to, value);
  }
}

// Writes the bytes of a vector that are among the first `left`.
template <bool kStream>
inline void write_first(uint8_t* to, int64_t left, __m256i value) {
  if (left >= 32) return write<kStream>(to, value);
  alignas(32) uint8_t bytes[32];
  store(bytes, value);
  std::memcpy(to, bytes, left);
}

template <bool kStream, class F>
void expand_segment(const Avx2::Decoder<F>& decoder, const Segment& segment, uint8_t* out, bool widened) {
  constexpr int kBytes = Avx2::Decoder<F>::kBytes;
  widened = widened && kBytes == 2;
  if (!widened && segment.columns % 32 == 0 && segment.escapes.count == 0) {
    const auto put = [&](int64_t column, __m256i elements) { write<kStream>(out + kBytes * column, elements); };
    return each_vector(decoder, segment, put);
  }
  Buffer buffer;
  fill(buffer, decoder, segment);
  const int64_t end = (widened ? 4 : kBytes) * segment.columns;
  for (int64_t byte = 0; byte < end; byte += 32) {
    __m256i elements;
    if constexpr (kBytes == 2) {
      const auto* half = reinterpret_cast<const __m128i*>(buffer.bytes + byte / 2);
      elements = widened ? widen8<F::kNumber>(_mm_load_si128(half)) : load(buffer.bytes + byte);
    } else {
      elements = load(buffer.bytes + byte);
    }
    write_first<kStream>(out + byte, end - byte, elements);
  }
}

template <class F>
void Avx2::expand(const Decoder<F>& decoder, const Segment& segment, uint8_t* out, bool widened, bool streaming) {
  if (streaming && reinterpret_cast<uintptr_t>(out) % 32 == 0) {
    expand_segment<true>(decoder, segment, out, widened);
  } else {
    expand_segment<false>(decoder, segment, out, widened);
  }
}

// The float32 values of two vectors of elements, bfloat16 in the order of kFloat32EvenOdd.
template <Number kNumber, int kVectors>
ENDOR_INLINED void widen_both(__m256i low, __m256i high, __m256 (&values)[kVectors]) {
  if constexpr (kNumber == Number::kBFloat16) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    values[0] = _mm256_castsi256_ps(_mm256_slli_epi32(low, 16));
    values[1] = _mm256_castsi256_ps(_mm256_slli_epi32(high, 16));
    values[2] = _mm256_castsi256_ps(_mm256_and_si256(low, upper));
    values[3] = _mm256_castsi256_ps(_mm256_and_si256(high, upper));
  } else if constexpr (kNumber == Number::kFloat16) {
    values[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(low));
    values[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(low, 1));
    values[2] = _mm256_cvtph_ps(_mm256_castsi256_si128(high));
    values[3] = _mm256_cvtph_ps(_mm256_extracti128_si256(high, 1));
  } else {
    values[0] = _mm256_castsi256_ps(low);
    values[1] = _mm256_castsi256_ps(high);
  }
}

// Sums of products with inputs first, ..., first + n − 1, each in registers: the order of additions depends on
// n and the number format only.
template <Number kNumber, InputFormat kInputs, int n, int places>
class Products {
 public:
  static constexpr int kBytes = element_bytes(kNumber);
  static constexpr int kColumns = 64 / kBytes;  // of a step

  ENDOR_INLINED Products(const uint8_t* x, int first, const __m256* sums) : x_(x), first_(first) {
    for (int i = 0; i < n; ++i) {
      chains_[i][0] = sums[i];
      for (int k = 1; k < kChains; ++k) chains_[i][k] = _mm256_setzero_ps();
    }
  }

  ENDOR_INLINED void add(int64_t column, __m256i low, __m256i high) {
    __m256 weights[kVectors];
    widen_both<kNumber>(low, high, weights);
    for (int i = 0; i < n; ++i) {
      const auto* input = reinterpret_cast<const float*>(input_at<kInputs, places>(x_, first_ + i, column));
      for (int v = 0; v < kVectors; ++v) {
        __m256& sum = chains_[i][v % kChains];
        sum = _mm256_fmadd_ps(weights[v], _mm256_load_ps(input + 8 * v), sum);
      }
    }
  }

  ENDOR_INLINED void store(__m256* sums) const {
    for (int i = 0; i < n; ++i) {
      sums[i] = chains_[i][0];
      for (int k = 1; k < kChains; ++k) sums[i] = _mm256_add_ps(sums[i], chains_[i][k]);
    }
  }

 private:
  // An addition waits for the one before it, so there are several chains of them.
  static constexpr int kVectors = kColumns / 8, kChains = n <= 2 ? kVectors : n <= 4 ? 2 : 1;

  const uint8_t* x_;
  int first_;
  __m256 chains_[n][kChains];
};

// Sums of products with n inputs, in lanes.
template <class F, InputFormat kInputs, int n>
class Avx2::Sums {
 public:
  Sums() {
    for (__m256& sum : sums_) sum = _mm256_setzero_ps();
  }

  void add(const Decoder<F>& decoder, const Segment& segment, const uint8_t* x) {
    if (kMayMultiplyAtOnce && (!F::kEscapes || segment.escapes.count == 0)) {
      if constexpr (kMayMultiplyAtOnce) multiply_at_once(decoder, segment, x);
    } else if constexpr (F::kEscapes || !kMayMultiplyAtOnce) {
      Buffer buffer;
      fill(buffer, decoder, segment);
      for (int i = 0; i < n; i += kAtOnce) multiply(buffer, segment.columns, x, i);
    }
  }

  void store(float (&sums)[n]) const {
    for (int i = 0; i < n; ++i) {
      __m128 half = _mm_add_ps(_mm256_castps256_ps128(sums_[i]), _mm256_extractf128_ps(sums_[i], 1));
      half = _mm_add_ps(half, _mm_movehl_ps(half, half));
      sums[i] = _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
  }

 private:
  static constexpr int kAtOnce = n < 8 ? n : 8;  // of whose sums each has a register
  static constexpr int kBytes = Decoder<F>::kBytes;
  static constexpr bool kMayMultiplyAtOnce = F::kBitmap && n <= 4;
  using Steps = Products<F::kNumber, kInputs, kAtOnce, n>;

  void multiply(const Buffer& buffer, int64_t columns, const uint8_t* x, int first) {
    Steps products(x, first, sums_ + first);
    for (int64_t column = 0; column < columns; column += Steps::kColumns) {
      const uint8_t* const from = buffer.bytes + kBytes * column;
      products.add(column, load(from), load(from + 32));
    }
    products.store(sums_ + first);
  }

  // With few inputs it saves a quarter of the time not to write elements to a buffer in between.
  void multiply_at_once(const Decoder<F>& decoder, const Segment& segment, const uint8_t* x) {
    Buffer buffer;
    const uint8_t* from = stored(decoder, segment, buffer);
    Steps products(x, 0, sums_);
    each_word(segment, [&](int64_t column, uint32_t word) {
      if (F::kRaw) prefetch(from);
      __m256i elements[kBytes];  // of 32 columns
      from = spread<kBytes>(from, word, 0, [&](int64_t c, __m256i vector) {
        elements[c * kBytes / 32] = scaled<F>(segment, column, vector);
      });
      for (int i = 0; i < kBytes; i += 2) products.add(column + 8 * i, elements[i], elements[i + 1]);
    });
    products.store(sums_);
  }

  __m256 sums_[n];
};

InputFormat input_format(Number weights, Number) {
  return weights == Number::kBFloat16 ? InputFormat::kFloat32EvenOdd : InputFormat::kFloat32;
}

bool has_f16c() {  // not every compiler has a name for it
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}

}  // namespace

const RowKernels kAvx2 = {"avx2", supported, input_format, expand_rows<Avx2>, multiply_rows_of_any<Avx2>};

}  // namespace endor

#endif  // __x86_64__
