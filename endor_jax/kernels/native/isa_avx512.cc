// AVX-512 with VBMI and VBMI2 (Ice Lake, Zen 4 and later): 32 columns of 16 bits, or 16 of 32, at a time.
//
// The stored fields of 32 columns are consecutive, so one load has them all. `vpermb` gives every 64-bit lane
// the bytes of its four fields, `vpmultishiftqb` shifts each field to 16 bits of its own with its sign on top,
// three integer instructions make elements of them, and `vpexpandw` moves those to the columns whose bits are
// set. How far a field is from a byte boundary changes from load to load, so the shifts are a table.

#if defined(__x86_64__)

#include <immintrin.h>

#include "rows.h"

namespace endor {
namespace {

// Shuffles that bring fields of one width to lanes of 16 bits, for each number of bits by which the load begins
// before the first. A result is the 16 bits that end with the field's last.
struct alignas(64) Lane {
  uint8_t bytes[64];
  uint8_t shifts[64];
};

// Four fields share a lane of 64 bits: `bytes` for vpermb, which is the same whatever `early` is, and for
// vpmultishiftqb the bit of its lane at which each result byte starts.
constexpr bool four_fit_a_lane(int width) {
  // Positions are multiples of the width behind the start of a word, so for even widths they are even.
  const int lane_starts_at = 4 * width % 8, early = width % 2 == 0 ? 6 : 7;
  return lane_starts_at + early + 3 * width + 16 <= 64;
}

constexpr Lane four_to_a_lane(int width, int early) {
  Lane made{};
  for (int i = 0; i < 64; ++i) {
    const int lane = i / 8, field = i % 8 / 2, first_bit = 4 * width * lane;
    made.bytes[i] = static_cast<uint8_t>((first_bit / 8 + i % 8) % 64);
    made.shifts[i] = static_cast<uint8_t>((first_bit % 8 + early + field * width + 8 * (i % 2)) % 64);
  }
  return made;
}

// Each field has three bytes for itself: `bytes` for vpermb, of which adding one gives the next; and for
// vpshrdvw how far to shift.
constexpr Lane one_to_a_lane(int width, int early) {
  Lane made{};
  for (int i = 0; i < 64; ++i) {
    const int bit = early + i / 2 * width;
    made.bytes[i] = static_cast<uint8_t>((bit / 8 + i % 2) % 64);
    made.shifts[i] = static_cast<uint8_t>(i % 2 == 0 ? bit % 8 : 0);
  }
  return made;
}

struct Lanes {
  Lane of[17][8];  // by field width and early bits
};

constexpr Lanes all_lanes() {
  Lanes made{};
  for (int width = 1; width <= 16; ++width) {
    for (int early = 0; early < 8; ++early) {
      made.of[width][early] =
          four_fit_a_lane(width) ? four_to_a_lane(width, early) : one_to_a_lane(width, early);
    }
  }
  return made;
}

constexpr Lanes kLanes = all_lanes();

// For vpermt2w: the upper 16 bits of each 32.
struct alignas(64) UpperHalves {
  uint16_t of[32];
};

constexpr UpperHalves all_upper_halves() {
  UpperHalves made{};
  for (int i = 0; i < 32; ++i) made.of[i] = static_cast<uint16_t>(2 * i + 1);
  return made;
}

constexpr UpperHalves kUpperHalves = all_upper_halves();

struct Avx512 {
  template <class F>
  class Decoder;

  static void end_streaming() { _mm_sfence(); }

  template <class F>
  static void expand(const Decoder<F>& decoder, const Segment& segment, uint8_t* out, bool widened,
                     bool streaming);

  template <class F, InputFormat kInputs, int n>
  class Sums;

  template <class F, class Call>
  static void with_input_format(InputFormat format, Call call) {
    if constexpr (F::kNumber == Number::kBFloat16) {
      if (format == InputFormat::kBFloat16) {
        return call(std::integral_constant<InputFormat, InputFormat::kBFloat16>{});
      }
      return call(std::integral_constant<InputFormat, InputFormat::kFloat32EvenOdd>{});
    } else {
      return call(std::integral_constant<InputFormat, InputFormat::kFloat32>{});
    }
  }
};

// 32 consecutive fields as 16-bit elements, or 16 as 32-bit ones; integers without their scales.
template <class F>
class Avx512::Decoder {
 public:
  using Format = F;
  static constexpr bool kWide = F::kNumber == Number::kFloat32;
  static constexpr int kColumns = kWide ? 16 : 32;

  explicit Decoder(int field_bits) : width_(field_bits) {
    constexpr int kBits = 8 * element_bytes(F::kNumber);
    early_ = kBits - width_;
    if (F::kIntegers && width_ == 8) early_ = 0;
    if (F::kRaw || early_ == 0) return;
    const uint32_t keep = 1u << (kBits - 1) | ((1u << (width_ - 1)) - 1);
    if constexpr (kWide) {
      keep_ = _mm512_set1_epi32(static_cast<int>(keep));
      down_ = _mm512_set1_epi32(early_);
      four_fit_ = F::kIntegers;
      const __m512i number = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
      first_half_ = _mm512_mullo_epi64(number, _mm512_set1_epi64(width_));
      second_half_ = _mm512_add_epi64(first_half_, _mm512_set1_epi64(8 * width_));
    } else {
      keep_ = _mm512_set1_epi16(static_cast<short>(keep));
      down_ = _mm512_set1_epi16(static_cast<short>(early_));
      lanes_ = kLanes.of[width_];
      four_fit_ = four_fit_a_lane(width_);
      bytes_ = _mm512_load_si512(lanes_[0].bytes);
    }
  }

  int width() const { return width_; }

  // Bits between the start of a field's window, which is as wide as an element, and the field.
  int early() const { return early_; }
  // Whether four packed fields fit a lane, and integers are of 4 bits: those of 8 are read as bytes.
  bool four_fit() const { return four_fit_; }

  // Element bits of the fields whose windows start at bit `from`, and every width() bits from there on.
  template <bool kFourFit>
  __m512i elements(const uint8_t* bytes, uint64_t from, __m512i base) const {
    if constexpr (F::kRaw) return _mm512_loadu_si512(bytes + (from >> 3));
    const __m512i loaded = _mm512_loadu_si512(bytes + (from >> 3));
    __m512i top;  // fields, each with its sign on top of its lane
    if constexpr (kWide) {
      top = windows32(loaded, from & 7);
      if constexpr (F::kIntegers) return _mm512_srav_epi32(top, down_);
      return _mm512_add_epi32(_mm512_and_si512(_mm512_srav_epi32(top, down_), keep_), base);
    } else {
      const Lane& lane = lanes_[from & 7];
      const __m512i shifts = _mm512_load_si512(lane.shifts);
      if constexpr (kFourFit) {
        top = _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(bytes_, loaded));
      } else {
        const __m512i first = _mm512_load_si512(lane.bytes);
        const __m512i third = _mm512_add_epi8(first, _mm512_set1_epi8(2));
        top = _mm512_shrdv_epi16(_mm512_permutexvar_epi8(first, loaded),
                                 _mm512_permutexvar_epi8(third, loaded), shifts);
      }
      if constexpr (F::kIntegers) return _mm512_srlv_epi16(top, down_);  // an index of the table
      return _mm512_add_epi16(_mm512_and_si512(_mm512_srav_epi16(top, down_), keep_), base);
    }
  }

  __m512i base(uint32_t base) const {
    return kWide ? _mm512_set1_epi32(static_cast<int>(base)) : _mm512_set1_epi16(static_cast<short>(base));
  }

 private:
  // 32-bit windows at early + i · width.
  __m512i windows32(__m512i loaded, uint64_t early) const {
    const __m512i low = windows64(loaded, first_half_, early);
    const __m512i high = windows64(loaded, second_half_, early);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(low)), _mm512_cvtepi64_epi32(high), 1);
  }

  __m512i windows64(__m512i loaded, __m512i distance, uint64_t early) const {
    const __m512i bit = _mm512_add_epi64(distance, _mm512_set1_epi64(static_cast<long long>(early)));
    const __m512i byte = _mm512_srli_epi64(bit, 3);
    const __m512i repeated = _mm512_shuffle_epi8(byte, _mm512_set_epi64(
        0x0808080808080808, 0, 0x0808080808080808, 0, 0x0808080808080808, 0, 0x0808080808080808, 0));
    const __m512i index = _mm512_add_epi8(repeated, _mm512_set1_epi64(0x0706050403020100));
    return _mm512_srlv_epi64(_mm512_permutexvar_epi8(index, loaded),
                             _mm512_and_si512(bit, _mm512_set1_epi64(7)));
  }

  int width_;
  int early_;
  bool four_fit_ = false;
  const Lane* lanes_ = nullptr;
  __m512i keep_, down_, bytes_, first_half_, second_half_;
};

// What elements are decoded for. Whoever multiplies pairs of bfloat16 has instructions for rounding to it as well.
enum class Purpose { kExpand, kMultiply, kMultiplyPairs };

// The elements of integers: products with the scale of a group, rounded. Of 4 bits and rounded there are so few
// that they are looked up in a table.
template <class F, Purpose kPurpose, bool kTable>
class Scaling {
 public:
  // From this column of the segment on.
  void begin_group(const Segment& segment, int64_t column) {
    scale_ = _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(scale_bits(segment, column))));
    if constexpr (kTable) {
      const __m512i integers = _mm512_set_epi32(-1, -2, -3, -4, -5, -6, -7, -8, 7, 6, 5, 4, 3, 2, 1, 0);
      table_ = _mm512_castsi256_si512(rounded(product(integers)));
    }
  }

  // Of 32 integers of 4 bits, or of 16 that are 32 bits wide.
  __m512i elements(__m512i integers) const {
    return kTable ? _mm512_permutexvar_epi16(integers, table_) : _mm512_castps_si512(product(integers));
  }

  // Of 32 integers of 8 bits, or 16 if elements are float32.
  __m512i elements(const uint8_t* from) const {
    const __m512 first = product(bytes(from));
    if constexpr (kWide) return _mm512_castps_si512(first);
    const __m512 second = product(bytes(from + 16));
    if constexpr (kPairs) return (__m512i)_mm512_cvtne2ps_pbh(second, first);
    if constexpr (F::kNumber == Number::kBFloat16) {
      const __m512i upper = _mm512_load_si512(kUpperHalves.of);
      return _mm512_permutex2var_epi16(rounded_up(first), upper, rounded_up(second));
    }
    return _mm512_inserti64x4(_mm512_castsi256_si512(rounded(first)), rounded(second), 1);
  }

 private:
  static constexpr bool kWide = F::kNumber == Number::kFloat32;
  static constexpr bool kPairs = kPurpose == Purpose::kMultiplyPairs;

  static __m512i bytes(const uint8_t* from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  __m512 product(__m512i integers) const { return _mm512_mul_ps(_mm512_cvtepi32_ps(integers), scale_); }

  // Elements of 16 bits.
  static __m256i rounded(__m512 products) {
    if constexpr (F::kNumber == Number::kFloat16) return _mm512_cvtps_ph(products, _MM_FROUND_TO_NEAREST_INT);
    if constexpr (kPairs) return (__m256i)_mm512_cvtneps_pbh(products);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_up(products), 16));
  }

  // bfloat16 in the upper halves of the lanes; what is below them is not cleared.
  static __m512i rounded_up(__m512 products) {
    const __m512i bits = _mm512_castps_si512(products);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  }

  __m512 scale_;
  __m512i table_;  // by the four bits of an integer
};

// How far ahead of the fields in use others are fetched, for products. (Expanding writes past the caches, and is
// slower with it.)
constexpr int64_t kPrefetchBytes = 2048;

// The escapes of a segment where they belong: the elements of their columns, and a bit per column that has one.
// Rare as they are, a branch for each would be mispredicted, and cost more than the 32 columns around it.
template <Number kNumber>
class Overlay {
 public:
  explicit Overlay(const Segment& segment) {
    for (uint32_t& word : here_) word = 0;
    for (int64_t i = 0; i < segment.escapes.count; ++i) {
      const uint32_t column = segment.escapes.index[i] - segment.first_index;
      here_[column / 32] |= 1u << column % 32;
      std::memcpy(elements_ + column * kBytes, segment.escapes.bits + i * kBytes, kBytes);
    }
  }

  // `elements` of the columns from `column` on, with the escapes among them.
  __m512i over(__m512i elements, int64_t column) const {
    const uint8_t* from = elements_ + column * kBytes;
    if constexpr (kBytes == 2) return _mm512_mask_loadu_epi16(elements, here_[column / 32], from);
    const auto here = static_cast<__mmask16>(here_[column / 32] >> (column % 32));
    return _mm512_mask_loadu_epi32(elements, here, from);
  }

 private:
  static constexpr int kBytes = element_bytes(kNumber);

  alignas(64) uint32_t here_[kSegment / 32];
  alignas(64) uint8_t elements_[kSegment * kBytes];
};

// Calls `use(column, elements, present)` for every 32 or 16 columns of a segment: their element bits, with zeros
// where there is none, and the mask of the columns there are. `finish(elements, column)` has the last word.
template <Purpose kPurpose, bool kFourFit, class F, class Finish, class Use>
inline void each_chunk(const Avx512::Decoder<F>& decoder, const Segment& segment, Finish finish, Use use) {
  constexpr int kColumns = Avx512::Decoder<F>::kColumns;
  constexpr uint32_t kAll = kColumns == 32 ? ~0u : 0xffffu;
  const __m512i base = decoder.base(segment.base);
  uint64_t from = segment.position - decoder.early();
  constexpr bool kBytes = F::kIntegers && !kFourFit;
  Scaling<F, kPurpose, F::kIntegers && kFourFit && kColumns == 32> scaling;
  const auto chunk = [&](int64_t column, uint32_t present) {
    if constexpr (kPurpose != Purpose::kExpand) {
      _mm_prefetch(reinterpret_cast<const char*>(segment.bytes + (from >> 3) + kPrefetchBytes), _MM_HINT_T0);
    }
    __m512i elements;
    if constexpr (F::kIntegers) {
      if (column % kGroup == 0) scaling.begin_group(segment, column);
    }
    if constexpr (kBytes) {
      elements = scaling.elements(segment.bytes + (from >> 3));
    } else {
      elements = decoder.template elements<kFourFit>(segment.bytes, from, base);
      if constexpr (F::kIntegers) elements = scaling.elements(elements);
    }
    if constexpr (F::kBitmap) {
      const uint32_t word = segment.bitmap[column / 32];
      const uint32_t stored = (kColumns == 32 ? word : word >> (column % 32)) & present;
      from += static_cast<uint64_t>(__builtin_popcount(stored)) * decoder.width();
      elements = kColumns == 32 ? _mm512_maskz_expand_epi16(stored, elements)
                                : _mm512_maskz_expand_epi32(static_cast<__mmask16>(stored), elements);
    } else {
      from += static_cast<uint64_t>(kColumns) * decoder.width();
      if (present != kAll) {  // behind the last column may be anything, NaN too
        elements = kColumns == 32 ? _mm512_maskz_mov_epi16(present, elements)
                                  : _mm512_maskz_mov_epi32(static_cast<__mmask16>(present), elements);
      }
    }
    use(column, finish(elements, column), present);
  };
  int64_t column = 0;
  for (; column + kColumns <= segment.columns; column += kColumns) chunk(column, kAll);
  if (column < segment.columns) chunk(column, (1u << (segment.columns - column)) - 1);
}

template <Purpose kPurpose, class F, class Finish, class Use>
inline void each_finished(const Avx512::Decoder<F>& decoder, const Segment& segment, Finish finish, Use use) {
  if constexpr (F::kRaw || (F::kPacked && Avx512::Decoder<F>::kWide)) {  // whose loops are the same
    each_chunk<kPurpose, true>(decoder, segment, finish, use);
  } else {
    decoder.four_fit() ? each_chunk<kPurpose, true>(decoder, segment, finish, use)
                       : each_chunk<kPurpose, false>(decoder, segment, finish, use);
  }
}

template <Purpose kPurpose, class F, class Use>
inline void each(const Avx512::Decoder<F>& decoder, const Segment& segment, Use use) {
  if constexpr (F::kEscapes) {
    if (segment.escapes.count > 0) {
      const Overlay<F::kNumber> escapes(segment);
      const auto finish = [&](__m512i elements, int64_t column) { return escapes.over(elements, column); };
      return each_finished<kPurpose>(decoder, segment, finish, use);
    }
  }
  each_finished<kPurpose>(decoder, segment, [](__m512i elements, int64_t) { return elements; }, use);
}

// The float32 values of 16 elements of 16 bits.
template <Number kNumber>
inline __m512i widen16(__m256i elements) {
  if constexpr (kNumber == Number::kBFloat16) return _mm512_slli_epi32(_mm512_cvtepu16_epi32(elements), 16);
  const __m512 values = _mm512_cvtph_ps(elements);
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  if (__builtin_expect(nan == 0, 1)) return _mm512_castps_si512(values);
  // The conversion makes every NaN a quiet one; its bits belong where they are.
  const __m512i bits = _mm512_cvtepu16_epi32(elements);
  const __m512i sign = _mm512_slli_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(0x8000)), 16);
  const __m512i mantissa = _mm512_slli_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(0x3ff)), 13);
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  return _mm512_mask_or_epi32(_mm512_castps_si512(values), nan, _mm512_or_si512(sign, mantissa), exponent);
}

template <class F>
void Avx512::expand(const Decoder<F>& decoder, const Segment& segment, uint8_t* out, bool widened,
                    bool streaming) {
  constexpr int kBytes = element_bytes(F::kNumber);
  const bool whole_lines = reinterpret_cast<uintptr_t>(out) % 64 == 0 && streaming;
  const auto put = [&](uint8_t* to, __m512i value, int bytes, uint64_t present, uint64_t all) {
    if (present != all) {
      bytes == 2 ? _mm512_mask_storeu_epi16(to, static_cast<__mmask32>(present), value)
                 : _mm512_mask_storeu_epi32(to, static_cast<__mmask16>(present), value);
    } else if (whole_lines) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), value);
    } else {
      _mm512_storeu_si512(to, value);
    }
  };
  if (!widened || kBytes == 4) {
    each<Purpose::kExpand>(decoder, segment, [&](int64_t column, __m512i elements, uint32_t present) {
      put(out + kBytes * column, elements, kBytes, present, kBytes == 2 ? ~0u : 0xffffu);
    });
  } else if constexpr (kBytes == 2) {
    each<Purpose::kExpand>(decoder, segment, [&](int64_t column, __m512i elements, uint32_t present) {
      const __m512i low = widen16<F::kNumber>(_mm512_castsi512_si256(elements));
      const __m512i high = widen16<F::kNumber>(_mm512_extracti64x4_epi64(elements, 1));
      put(out + 4 * column, low, 4, present & 0xffffu, 0xffffu);
      if (present >> 16) put(out + 4 * column + 64, high, 4, present >> 16, 0xffffu);
    });
  }
}

// Sums of products with n inputs, in lanes.
template <class F, InputFormat kInputs, int n>
class Avx512::Sums {
 public:
  Sums() {
    for (__m512& sum : sums_) sum = _mm512_setzero_ps();
  }

  void add(const Decoder<F>& decoder, const Segment& segment, const uint8_t* x) {
    constexpr Purpose kPurpose =
        kInputs == InputFormat::kBFloat16 ? Purpose::kMultiplyPairs : Purpose::kMultiply;
    each<kPurpose>(decoder, segment, [&](int64_t column, __m512i elements, uint32_t) {
      if constexpr (kInputs == InputFormat::kBFloat16) {
        for (int i = 0; i < n; ++i) {
          const __m512i input = _mm512_load_si512(input_at<kInputs, n>(x, i, column));
          sums_[i] = _mm512_dpbf16_ps(sums_[i], (__m512bh)elements, (__m512bh)input);
        }
      } else if constexpr (F::kNumber == Number::kFloat32) {
        for (int i = 0; i < n; ++i) multiply(i, elements, input_at<kInputs, n>(x, i, column));
      } else {
        __m512i first, second;  // even and odd columns, or the lower and the upper half
        if constexpr (F::kNumber == Number::kBFloat16) {
          first = _mm512_slli_epi32(elements, 16);
          second = _mm512_and_si512(elements, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
        } else {
          first = widen16<F::kNumber>(_mm512_castsi512_si256(elements));
          second = widen16<F::kNumber>(_mm512_extracti64x4_epi64(elements, 1));
        }
        for (int i = 0; i < n; ++i) {
          multiply(i, first, input_at<kInputs, n>(x, i, column));
          multiply(i, second, input_at<kInputs, n>(x, i, column) + 64);
        }
      }
    });
  }

  void store(float (&sums)[n]) const {
    for (int i = 0; i < n; ++i) sums[i] = _mm512_reduce_add_ps(sums_[i]);
  }

 private:

  void multiply(int i, __m512i elements, const uint8_t* input) {
    sums_[i] = _mm512_fmadd_ps(_mm512_castsi512_ps(elements), _mm512_load_ps(input), sums_[i]);
  }

  __m512 sums_[n];
};

bool has_bfloat16_products() { return __builtin_cpu_supports("avx512bf16"); }

InputFormat input_format(Number weights, Number inputs) {
  if (weights != Number::kBFloat16) return InputFormat::kFloat32;
  const bool pairs = inputs == Number::kBFloat16 && has_bfloat16_products();
  return pairs ? InputFormat::kBFloat16 : InputFormat::kFloat32EvenOdd;
}

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
}

}  // namespace

const RowKernels kAvx512 = {"avx512", supported, input_format, expand_rows<Avx512>, multiply_rows_of_any<Avx512>};

}  // namespace endor

#endif  // __x86_64__
