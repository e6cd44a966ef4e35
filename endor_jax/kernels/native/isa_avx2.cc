// AVX2 with FMA and F16C (Haswell, Zen and later): 16 columns of 16 bits, or 8 of 32, at a time.
//
// There is no instruction that moves consecutive elements to the columns whose bits are set; a table of byte
// shuffles serves 8 columns. The fields of a packed segment are first decoded into a buffer in the first-level
// cache, where they lie as those of `raw` do in the part: in the stream a group of fields would begin at
// another bit each time, in the buffer it begins at a byte.

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include "byte_shuffles.h"
#include "rows.h"

namespace endor {
namespace {

constexpr AllFieldLanes<2> kFieldLanes16 = all_field_lanes<2>();
constexpr AllFieldLanes<4> kFieldLanes32 = all_field_lanes<4>();
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

inline __m256i load_halves(const uint8_t* low, const uint8_t* high) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(first),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
}

inline __m256i load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

inline __m256 load_input(const uint8_t* from) { return _mm256_load_ps(reinterpret_cast<const float*>(from)); }

struct Avx2 {
  template <class F>
  class Decoder;

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

// Packed fields as elements.
template <class F>
class Avx2::Decoder {
 public:
  using Format = F;
  static constexpr int kBytes = element_bytes(F::kNumber);
  static constexpr int kColumns = 32 / kBytes;  // of a vector

  explicit Decoder(int field_bits) : width_(field_bits) {
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

  // Calls `use(i, elements)` for each group of kColumns fields with at least one of the segment's first `count`.
  template <class Use>
  void decode(const Segment& segment, int64_t count, Use use) const {
    if constexpr (kBytes == 2) {
      // The lowest bits of a field are in the byte below its two: of fields of 9 bits never, of fields of 10
      // never either, because they begin at even bits.
      width_ <= 10 ? decode16<false>(segment, count, use) : decode16<true>(segment, count, use);
    } else {
      decode32(segment, count, use);
    }
  }

 private:
  static __m256i all(uint32_t value) {
    return kBytes == 2 ? _mm256_set1_epi16(static_cast<short>(value)) : _mm256_set1_epi32(static_cast<int>(value));
  }

  static __m256i table(const uint8_t* low, const uint8_t* high) { return load_halves(low, high); }

  template <bool kThreeBytes, class Use>
  void decode16(const Segment& segment, int64_t count, Use use) const {
    const FieldLanes<2>& lanes = lanes_[segment.position & 7];
    const __m256i top = table(lanes.top, lanes.top), below = table(lanes.below, lanes.below);
    // A multiplication shifts each lane by its own distance.
    const __m256i powers = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
    const __m256i low_byte = _mm256_set1_epi16(0xff);
    const __m256i factors =
        _mm256_and_si256(_mm256_shuffle_epi8(powers, table(lanes.shift, lanes.shift)), low_byte);
    const __m256i base = all(segment.base);
    const uint8_t* from = segment.bytes + (segment.position >> 3);
    for (int64_t i = 0; i < count; i += 16) {
      const __m256i loaded = load_halves(from, from + width_);
      __m256i field = _mm256_mullo_epi16(_mm256_shuffle_epi8(loaded, top), factors);
      if (kThreeBytes) {
        field = _mm256_or_si256(field, _mm256_mulhi_epu16(_mm256_shuffle_epi8(loaded, below), factors));
      }
      use(i, _mm256_add_epi16(_mm256_and_si256(_mm256_sra_epi16(field, down_), keep_), base));
      from += 2 * width_;
    }
  }

  template <class Use>
  void decode32(const Segment& segment, int64_t count, Use use) const {
    const uint64_t second = (segment.position & 7) + 4 * width_;  // bit of the fifth field
    const FieldLanes<4>&low = lanes_[segment.position & 7], &high = lanes_[second & 7];
    const __m256i top = table(low.top, high.top), below = table(low.below, high.below);
    const __m256i up = table(low.shift, high.shift), rest = _mm256_sub_epi32(_mm256_set1_epi32(32), up);
    const __m256i base = all(segment.base);
    const int64_t half = static_cast<int64_t>(second >> 3);
    const uint8_t* from = segment.bytes + (segment.position >> 3);
    for (int64_t i = 0; i < count; i += 8) {
      const __m256i tops =
          _mm256_shuffle_epi8(load_halves(from + low.top_from, from + half + high.top_from), top);
      const __m256i belows = _mm256_shuffle_epi8(load_halves(from, from + half), below);
      const __m256i field = _mm256_or_si256(_mm256_sllv_epi32(tops, up), _mm256_srlv_epi32(belows, rest));
      use(i, _mm256_add_epi32(_mm256_and_si256(_mm256_sra_epi32(field, down_), keep_), base));
      from += width_;
    }
  }

  int64_t width_;
  const FieldLanes<kBytes>* lanes_ = nullptr;
  __m128i down_;
  __m256i keep_;
};

// The bits of the segment's columns from `column`, a multiple of 32, on.
inline uint32_t bitmap_word(const Segment& segment, int64_t column) {
  const int64_t left = segment.columns - column;
  const uint32_t word = segment.bitmap[column / 32];
  return left >= 32 ? word : word & ((1u << left) - 1);
}

inline int64_t stored_fields(const Segment& segment) {
  int64_t count = 0;
  for (int64_t column = 0; column < segment.columns; column += 32) {
    count += __builtin_popcount(bitmap_word(segment, column));
  }
  return count;
}

// The next elements for the columns of a vector whose bits are set, zeros for the others; `from` moves on.
template <int kBytes>
inline __m256i spread(const uint8_t*& from, uint32_t bits) {
  if constexpr (kBytes == 2) {
    const uint32_t first = bits & 0xff, second = bits >> 8 & 0xff;
    const uint8_t* const next = from + 2 * __builtin_popcount(first);
    const __m256i elements =
        _mm256_shuffle_epi8(load_halves(from, next), load_halves(kSpread16.of[first], kSpread16.of[second]));
    from = next + 2 * __builtin_popcount(second);
    return elements;
  } else {
    const uint32_t byte = bits & 0xff;
    const __m256i index = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kSpread32.of[byte])));
    const __m256i elements = _mm256_permutevar8x32_epi32(load(from), index);
    from += 4 * __builtin_popcount(byte);
    return _mm256_andnot_si256(_mm256_srai_epi32(index, 31), elements);
  }
}

// The number of its column in each lane of a vector.
template <int kBytes>
inline __m256i lane_numbers() {
  return kBytes == 2 ? _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
                     : _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
}

template <int kBytes>
inline __m256i all_lanes(int64_t value) {
  return kBytes == 2 ? _mm256_set1_epi16(static_cast<short>(value)) : _mm256_set1_epi32(static_cast<int>(value));
}

// The first `count` elements, and zeros.
template <int kBytes>
inline __m256i first_elements(__m256i elements, int64_t count) {
  const __m256i end = all_lanes<kBytes>(count), lanes = lane_numbers<kBytes>();
  return _mm256_and_si256(elements, kBytes == 2 ? _mm256_cmpgt_epi16(end, lanes) : _mm256_cmpgt_epi32(end, lanes));
}

// Puts a segment's escapes in the place of its elements, vector after vector.
template <class F>
class EscapePlaces {
 public:
  static constexpr int kBytes = Avx2::Decoder<F>::kBytes, kColumns = Avx2::Decoder<F>::kColumns;

  explicit EscapePlaces(const Segment& segment) : segment_(segment) { find(); }

  __m256i put(int64_t column, __m256i elements) {
    while (place_ < column + kColumns) {
      const __m256i lane = all_lanes<kBytes>((place_ - column) % kColumns), lanes = lane_numbers<kBytes>();
      const __m256i here = kBytes == 2 ? _mm256_cmpeq_epi16(lanes, lane) : _mm256_cmpeq_epi32(lanes, lane);
      const uint32_t bits = escape_bits(segment_.escapes, next_++, F::kNumber);
      elements = _mm256_blendv_epi8(elements, all_lanes<kBytes>(bits), here);
      find();
    }
    return elements;
  }

 private:
  void find() {
    place_ = next_ < segment_.escapes.count ? segment_.escapes.index[next_] - segment_.first_index : 2 * kSegment;
  }

  const Segment& segment_;
  int64_t next_ = 0, place_;  // an escape, and its column
};

// Calls `use(column, elements)` for every vector of a segment, with zeros where nothing is stored.
template <class F, class Use>
inline void each_of_bitmap(const Avx2::Decoder<F>& decoder, const Segment& segment, Use use) {
  constexpr int kBytes = Avx2::Decoder<F>::kBytes, kColumns = Avx2::Decoder<F>::kColumns;
  // Whole vectors are written to the buffer and read from it.
  alignas(64) uint8_t buffer[F::kPacked ? kSegment * kBytes + 64 : 64];
  const uint8_t* from = segment.bytes + (segment.position >> 3);
  if constexpr (F::kPacked) {
    decoder.decode(segment, stored_fields(segment), [&](int64_t i, __m256i elements) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(buffer + kBytes * i), elements);
    });
    from = buffer;
  }
  const auto word_at = [&](int64_t column, uint32_t word, int64_t end) {
    for (int64_t c = column; c < end; c += kColumns) {
      use(c, spread<kBytes>(from, word));
      word >>= kColumns;
    }
  };
  int64_t column = 0;
  for (; column + 32 <= segment.columns; column += 32) word_at(column, segment.bitmap[column / 32], column + 32);
  if (column < segment.columns) word_at(column, bitmap_word(segment, column), segment.columns);
}

// The same without a bitmap.
template <class F, class Use>
inline void each_of_all(const Avx2::Decoder<F>& decoder, const Segment& segment, Use use) {
  constexpr int kBytes = Avx2::Decoder<F>::kBytes, kColumns = Avx2::Decoder<F>::kColumns;
  const auto use_present = [&](int64_t column, __m256i elements) {
    const int64_t left = segment.columns - column;
    use(column, left < kColumns ? first_elements<kBytes>(elements, left) : elements);
  };
  if constexpr (F::kPacked) {
    decoder.decode(segment, segment.columns, use_present);
  } else {
    const uint8_t* const from = segment.bytes + (segment.position >> 3);
    for (int64_t c = 0; c < segment.columns; c += kColumns) use_present(c, load(from + kBytes * c));
  }
}

// Either, with the escapes in their places.
template <class F, class Use>
inline void each(const Avx2::Decoder<F>& decoder, const Segment& segment, Use use) {
  const auto each_vector = [&](auto use_vector) {
    if constexpr (F::kBitmap) {
      each_of_bitmap(decoder, segment, use_vector);
    } else {
      each_of_all(decoder, segment, use_vector);
    }
  };
  if (F::kPacked && segment.escapes.count > 0) {
    EscapePlaces<F> escapes(segment);
    each_vector([&](int64_t column, __m256i elements) { use(column, escapes.put(column, elements)); });
  } else {
    each_vector(use);
  }
}

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

template <class F>
void Avx2::expand(const Decoder<F>& decoder, const Segment& segment, uint8_t* out, bool widened, bool streaming) {
  constexpr int kBytes = Decoder<F>::kBytes;
  const bool stream = streaming && reinterpret_cast<uintptr_t>(out) % 32 == 0;
  const auto put = [&](int64_t column, int bytes, __m256i value) {
    uint8_t* const to = out + bytes * column;
    const int64_t left = bytes * (segment.columns - column);
    if (left < 32) {
      alignas(32) uint8_t rest[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(rest), value);
      if (left > 0) std::memcpy(to, rest, left);
    } else if (stream) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to), value);
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
    }
  };
  if (!widened || kBytes == 4) {
    each(decoder, segment, [&](int64_t column, __m256i elements) { put(column, kBytes, elements); });
  } else if constexpr (kBytes == 2) {
    each(decoder, segment, [&](int64_t column, __m256i elements) {
      put(column, 4, widen8<F::kNumber>(_mm256_castsi256_si128(elements)));
      put(column + 8, 4, widen8<F::kNumber>(_mm256_extracti128_si256(elements, 1)));
    });
  }
}

// Sums of products with n inputs, in lanes.
template <class F, InputFormat kInputs, int n>
class Avx2::Sums {
 public:
  Sums() {
    for (auto& chains : sums_) {
      for (__m256& sum : chains) sum = _mm256_setzero_ps();
    }
  }

  void add(const Decoder<F>& decoder, const Segment& segment, const uint8_t* const (&x)[n]) {
    each(decoder, segment, [&](int64_t column, __m256i elements) { multiply(column, elements, x); });
  }

  void store(float (&sums)[n]) const {
    for (int i = 0; i < n; ++i) {
      __m256 sum = sums_[i][0];
      for (int chain = 1; chain < kChains; ++chain) sum = _mm256_add_ps(sum, sums_[i][chain]);
      __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
      half = _mm_add_ps(half, _mm_movehl_ps(half, half));
      sums[i] = _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
  }

 private:
  // With few inputs the two halves of a vector have sums of their own: an addition waits for the one before.
  static constexpr int kChains = F::kNumber != Number::kFloat32 && n <= 4 ? 2 : 1;

  void multiply(int64_t column, __m256i elements, const uint8_t* const (&x)[n]) {
    if constexpr (F::kNumber == Number::kFloat32) {
      for (int i = 0; i < n; ++i) multiply(i, 0, elements, x[i] + 4 * column);
    } else if constexpr (kInputs == InputFormat::kFloat32EvenOdd) {
      const __m256i even = _mm256_slli_epi32(elements, 16);
      const __m256i odd = _mm256_and_si256(elements, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
      const int64_t place = 4 * (column / 32 * 32) + 2 * (column % 32);
      for (int i = 0; i < n; ++i) {
        multiply(i, 0, even, x[i] + place);
        multiply(i, kChains - 1, odd, x[i] + place + 64);
      }
    } else {
      const __m256i low = _mm256_castps_si256(_mm256_cvtph_ps(_mm256_castsi256_si128(elements)));
      const __m256i high = _mm256_castps_si256(_mm256_cvtph_ps(_mm256_extracti128_si256(elements, 1)));
      for (int i = 0; i < n; ++i) {
        multiply(i, 0, low, x[i] + 4 * column);
        multiply(i, kChains - 1, high, x[i] + 4 * column + 32);
      }
    }
  }

  void multiply(int i, int chain, __m256i elements, const uint8_t* input) {
    __m256& sum = sums_[i][chain];
    sum = _mm256_fmadd_ps(_mm256_castsi256_ps(elements), load_input(input), sum);
  }

  __m256 sums_[n][kChains];
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
