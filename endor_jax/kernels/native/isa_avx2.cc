// AVX2 with FMA and F16C (Haswell, Zen and later): 16 columns of 16 bits, or 8 of 32, at a time.
//
// There is no instruction that moves consecutive elements to the columns whose bits are set; a table of byte
// shuffles serves 8 columns. A segment goes through buffers in the first-level cache: its fields are decoded,
// then moved to their columns, then copied, widened or multiplied. In the stream the fields of some columns
// begin at another bit each time, in the buffer their elements begin at a byte; and no loop waits for another.

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

inline void store(uint8_t* to, __m256i value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value); }

// Asks for what will be read of a stream in a while: the processor does so by itself only while it reads, and
// between reading and reading there is a segment's work. May be behind the part: nothing is read there.
inline void prefetch(const uint8_t* from) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(from) + 2048), _MM_HINT_T0);
}

// The elements of a segment, and room for two vectors behind the last.
struct alignas(64) Buffer {
  uint8_t bytes[4 * kSegment + 64];
};

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

  // Calls `put(i, elements)` for each group of kColumns fields with at least one of the segment's first `count`.
  template <class Put>
  void decode(const Segment& segment, int64_t count, Put put) const {
    if constexpr (kBytes == 2) {
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

// The bits of the segment's last columns, which do not fill a word.
inline uint32_t last_word(const Segment& segment) {
  return segment.bitmap[segment.columns / 32] & ((1u << segment.columns % 32) - 1);
}

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

// A segment's stored elements one after another: where they are in the part, or decoded into `buffer`.
template <class F>
ENDOR_INLINED const uint8_t* stored(const Avx2::Decoder<F>& decoder, const Segment& segment, Buffer& buffer) {
  if constexpr (!F::kPacked) return segment.bytes + (segment.position >> 3);
  decoder.decode(segment, stored_fields(segment), [&](int64_t i, __m256i elements) {
    store(buffer.bytes + Avx2::Decoder<F>::kBytes * i, elements);
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
inline void each_vector(const Avx2::Decoder<F>& decoder, const Segment& segment, Put put) {
  constexpr int kBytes = Avx2::Decoder<F>::kBytes, kColumns = Avx2::Decoder<F>::kColumns;
  if constexpr (F::kBitmap) {
    Buffer buffer;
    const uint8_t* from = stored(decoder, segment, buffer);
    each_word(segment, [&](int64_t column, uint32_t word) {
      if (!F::kPacked) prefetch(from);
      from = spread<kBytes>(from, word, column, put);
    });
  } else if constexpr (F::kPacked) {
    decoder.decode(segment, segment.columns, put);
  } else {
    const uint8_t* const from = segment.bytes + (segment.position >> 3);
    const int64_t columns = segment.columns;
    for (int64_t c = 0; c < columns; c += kColumns) put(c, load(from + kBytes * c));
  }
}

// A segment's elements in the order of columns, the escapes among them, and 64 bytes of zeros behind them.
template <class F>
inline void fill(Buffer& buffer, const Avx2::Decoder<F>& decoder, const Segment& segment) {
  constexpr int kBytes = Avx2::Decoder<F>::kBytes;
  each_vector(decoder, segment, [&](int64_t c, __m256i elements) { store(buffer.bytes + kBytes * c, elements); });
  uint8_t* const end = buffer.bytes + kBytes * segment.columns;
  store(end, _mm256_setzero_si256());
  store(end + 32, _mm256_setzero_si256());
  for (int64_t i = 0; i < segment.escapes.count; ++i) {
    const uint32_t bits = escape_bits(segment.escapes, i, F::kNumber);
    std::memcpy(buffer.bytes + kBytes * (segment.escapes.index[i] - segment.first_index), &bits, kBytes);
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
    if (F::kBitmap && n <= 4 && segment.escapes.count == 0) {
      multiply_at_once(decoder, segment, x);
    } else {
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
      if (!F::kPacked) prefetch(from);
      __m256i elements[kBytes];  // of 32 columns
      from = spread<kBytes>(from, word, 0, [&](int64_t c, __m256i vector) { elements[c * kBytes / 32] = vector; });
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
