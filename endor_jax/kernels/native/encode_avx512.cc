// Encoding with AVX-512 VBMI2: 32 columns of 16 bits, or twice 16 of 32, at a time.
//
// Counting looks at exponents as bytes, 64 to a register: their smallest and largest tell the base of most
// segments, else as many exponents as need be are counted, from the largest down. Writing moves the fields of
// a segment together (`vpcompressw` to a register: to memory it is slow on Zen 4), then joins them without
// gaps: neighbours by shifts up to 64-bit lanes, lanes by a byte shuffle.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "encode_rows.h"
#include "exponents_avx512.h"
#include "field_packer_avx512.h"

namespace endor {
namespace {

struct Avx512Encoder {
  template <class F>
  static CountedSegment count(const uint8_t* bits, int64_t columns, int window) {
    constexpr int kBytes = element_bytes(F::kNumber);
    constexpr int kAllOnes = (1 << (8 * kBytes - 1 - mantissa_bits(F::kNumber))) - 1;
    using Loaded = Columns<F::kNumber>;
    alignas(64) uint8_t exponents[kSegment];
    __m512i lowest = _mm512_set1_epi8(-1), highest = _mm512_setzero_si512();
    int64_t nonzero = 0, packable = 0;
    for (int64_t c = 0; c < columns; c += 64) {
      const Loaded first = Loaded::load(bits + c * kBytes, columns - c);
      const Loaded second =
          columns - c > 32 ? Loaded::load(bits + (c + 32) * kBytes, columns - c - 32) : Loaded{};
      nonzero += __builtin_popcountll(first.nonzero() | static_cast<uint64_t>(second.nonzero()) << 32);
      if constexpr (F::kPacked) {
        const __m512i exponent = exponent_bytes<F::kNumber>(first, second);
        const __mmask64 packs = _mm512_cmplt_epu8_mask(_mm512_sub_epi8(exponent, _mm512_set1_epi8(1)),
                                                       _mm512_set1_epi8(static_cast<char>(kAllOnes - 1)));
        packable += __builtin_popcountll(packs);
        highest = _mm512_mask_max_epu8(highest, packs, highest, exponent);
        // What cannot be packed becomes 255, which is no packable exponent of any format.
        const __m512i kept = _mm512_mask_mov_epi8(_mm512_set1_epi8(-1), packs, exponent);
        lowest = _mm512_min_epu8(lowest, kept);
        _mm512_store_si512(exponents + c, kept);
      }
    }
    if constexpr (!F::kPacked) return {0, nonzero, nonzero};
    const int largest = 255 - smallest_byte(_mm512_xor_si512(highest, _mm512_set1_epi8(-1)));
    ExponentCounts counts(exponents, (columns + 63) / 64 * 64);
    const Window best = best_window(smallest_byte(lowest), largest, packable, window, counts);
    return {best.base, best.covered, nonzero};
  }

  template <class F>
  class Writer;
};

template <class F>
class Avx512Encoder::Writer {
 public:
  Writer(const DenseMatrix& matrix, const EncodedPieces& pieces)
      : pieces_(pieces),
        width_(matrix.layout.field_bits),
        window_(matrix.window()),
        pack_(width_),
        stream_(pieces.stream),
        stream_end_(pieces.stream + pieces.stream_bytes) {}

  void add(const DenseSegment& segment) {
    const int base_mantissa = mantissa_bits(F::kNumber);
    const FittingMagnitudes fitting = fitting_magnitudes<F::kNumber>(segment.base, F::kPacked ? window_ : 1);
    const __m512i first_fitting = splat(fitting.first), fitting_count = splat(fitting.count);
    const __m512i base = splat(static_cast<uint32_t>(segment.base) << base_mantissa);
    const __m512i magnitude_bits = splat((1u << (8 * kBytes - 1)) - 1), sign_bit = splat(1u << (width_ - 1));
    const __m128i sign_down = _mm_cvtsi32_si128(8 * kBytes - width_);
    uint8_t* to = fields_ + waiting_ * kBytes;
    const auto put = [&to](__m512i fields, uint32_t kept, uint32_t present) {
      _mm512_storeu_si512(to, F::kBitmap ? compress(kept, fields) : keep(kept, fields));
      to += __builtin_popcount(F::kBitmap ? kept : present) * kBytes;
    };
    for (int64_t c = 0; c < segment.columns; c += 32) {
      const Loaded loaded = Loaded::load(segment.bits + c * kBytes, segment.columns - c);
      const auto present = static_cast<uint32_t>(low_bits(segment.columns - c));
      const uint32_t candidates = F::kBitmap ? loaded.nonzero() : present;
      uint32_t stored = F::kPacked ? 0 : candidates;
      for (int h = 0; h < kHalves; ++h) {
        const __m512i bits = loaded.half[h];
        const auto here = static_cast<uint32_t>(low_bits(kLanes)), shift = static_cast<uint32_t>(h * kLanes);
        if constexpr (F::kPacked) {
          const __m512i magnitude = _mm512_and_si512(bits, magnitude_bits);
          const uint32_t fits = below(subtract(magnitude, first_fitting), fitting_count);
          const __m512i code = subtract(magnitude, base);
          put(_mm512_ternarylogic_epi64(sign_bit, shifted_down(bits, sign_down), code, 0xca), fits,
              present >> shift & here);
          stored |= fits << shift;
        } else {
          put(bits, stored >> shift & here, present >> shift & here);
        }
      }
      if constexpr (F::kBitmap) segment.bitmap[c / 32] = stored;
      if (const uint32_t escaped = candidates & ~stored) {
        put_escapes(loaded, escaped, segment.index + static_cast<uint32_t>(c));
      }
    }
    waiting_ = (to - fields_) / kBytes;
    flush();
  }

  bool finish() {
    const int64_t bytes = (waiting_ * width_ + 7) / 8, room = stream_end_ - stream_;
    if (overfull_ || room < bytes || room >= bytes + 4 || escapes_ != pieces_.escapes) return false;
    std::memset(fields_ + waiting_ * kBytes, 0, (kLanes - waiting_) * kBytes);
    _mm512_mask_storeu_epi8(stream_, low_bits(room), packed(_mm512_load_si512(fields_)));
    return true;
  }

 private:
  using Loaded = Columns<F::kNumber>;
  static constexpr int kBytes = element_bytes(F::kNumber);
  static constexpr bool kWide = kBytes == 4;
  static constexpr int kLanes = 64 / kBytes;
  static constexpr int kHalves = 32 / kLanes;

  static __m512i splat(uint32_t value) {
    return kWide ? _mm512_set1_epi32(static_cast<int>(value)) : _mm512_set1_epi16(static_cast<short>(value));
  }
  static __m512i subtract(__m512i a, __m512i b) {
    return kWide ? _mm512_sub_epi32(a, b) : _mm512_sub_epi16(a, b);
  }
  static __m512i shifted_down(__m512i a, __m128i by) {
    return kWide ? _mm512_srl_epi32(a, by) : _mm512_srl_epi16(a, by);
  }
  static uint32_t below(__m512i a, __m512i b) {
    return kWide ? _mm512_cmplt_epu32_mask(a, b) : _mm512_cmplt_epu16_mask(a, b);
  }
  static __m512i compress(uint32_t kept, __m512i a) {
    return kWide ? _mm512_maskz_compress_epi32(static_cast<__mmask16>(kept), a)
                 : _mm512_maskz_compress_epi16(kept, a);
  }
  static __m512i keep(uint32_t kept, __m512i a) {
    return kWide ? _mm512_maskz_mov_epi32(static_cast<__mmask16>(kept), a) : _mm512_maskz_mov_epi16(kept, a);
  }

  __m512i packed(__m512i fields) const {
    if constexpr (!F::kPacked) return fields;
    return pack_(fields);
  }

  // Whole registers of fields go to the stream, the others to the front.
  void flush() {
    const int bytes = kLanes * width_ / 8;
    const uint8_t* from = fields_;
    uint8_t* to = stream_;
    for (; waiting_ >= kLanes; waiting_ -= kLanes, from += 64) {
      const __m512i made = packed(_mm512_load_si512(from));
      const int64_t room = stream_end_ - to;
      if (room < bytes) {
        overfull_ = true;
        continue;
      }
      room >= 64 ? _mm512_storeu_si512(to, made) : _mm512_mask_storeu_epi8(to, low_bits(room), made);
      to += bytes;
    }
    stream_ = to;
    _mm512_store_si512(fields_, _mm512_load_si512(from));
  }

  void put_escapes(const Loaded& loaded, uint32_t escaped, uint32_t index) {
    const int count = __builtin_popcount(escaped);
    if (escapes_ + count > pieces_.escapes) {
      overfull_ = true;
      return;
    }
    const __m512i number = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    uint32_t* to = pieces_.escape_index + escapes_;
    uint8_t* bits_to = pieces_.escape_bits + escapes_ * kBytes;
    if constexpr (!kWide) {
      const auto first = static_cast<__mmask32>(low_bits(count));
      _mm512_mask_storeu_epi16(bits_to, first, compress(escaped, loaded.half[0]));
    }
    for (int h = 0; h < 2; ++h) {
      const auto here = static_cast<__mmask16>(escaped >> (16 * h));
      const int found = __builtin_popcount(here);
      const auto first = static_cast<__mmask16>(low_bits(found));
      const __m512i indices = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(index + 16 * h)), number);
      _mm512_mask_storeu_epi32(to, first, _mm512_maskz_compress_epi32(here, indices));
      if constexpr (kWide) _mm512_mask_storeu_epi32(bits_to, first, compress(here, loaded.half[h]));
      to += found;
      bits_to += found * kBytes;
    }
    escapes_ += count;
  }

  EncodedPieces pieces_;
  int width_, window_;
  FieldPacker<kWide> pack_;
  uint8_t* stream_;
  uint8_t* stream_end_;
  int64_t escapes_ = 0;
  bool overfull_ = false;
  int64_t waiting_ = 0;  // fields that are not in the stream yet
  alignas(64) uint8_t fields_[(kSegment + 2 * kLanes) * kBytes];
};

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
}

}  // namespace

const EncodeKernels kAvx512Encode = {"avx512", supported, count_rows<Avx512Encoder>, write_rows<Avx512Encoder>};

}  // namespace endor

#endif  // __x86_64__
