// NEON (every 64-bit ARM processor): 8 columns of 16 bits, or 4 of 32, at a time.
//
// A table look-up of bytes moves consecutive elements to the columns whose bits are set. A segment goes through
// buffers in the first-level cache: its fields are decoded, then moved to their columns, then copied, widened
// or multiplied. In the stream the fields of some columns begin at another bit each time, in the buffer their
// elements begin at a byte; and no loop waits for another.

#if defined(__aarch64__)

#include <arm_neon.h>

#include "byte_shuffles.h"
#include "rows.h"

namespace endor {
namespace {

constexpr AllFieldLanes<2> kFieldLanes16 = all_field_lanes<2>();
constexpr AllFieldLanes<4> kFieldLanes32 = all_field_lanes<4>();
constexpr Spread16 kSpread16 = all_spread16();

// Moves consecutive elements of 32 bits to those of 4 columns whose bits are set, and zeros to the others.
struct alignas(64) Spread32 {
  uint8_t of[16][16];
  uint8_t bytes[16];  // taken
};

constexpr Spread32 all_spread32() {
  Spread32 made{};
  for (int bits = 0; bits < 16; ++bits) {
    int taken = 0;
    for (int column = 0; column < 4; ++column) {
      const bool stored = bits >> column & 1;
      for (int byte = 0; byte < 4; ++byte) {
        made.of[bits][4 * column + byte] = static_cast<uint8_t>(stored ? 4 * taken + byte : kZeroByte);
      }
      taken += stored;
    }
    made.bytes[bits] = static_cast<uint8_t>(4 * taken);
  }
  return made;
}

constexpr Spread32 kSpread32 = all_spread32();

// The elements of a segment, and room for four vectors behind the last.
struct alignas(64) Buffer {
  uint8_t bytes[4 * kSegment + 64];
};

struct Neon {
  template <class F>
  class Decoder;

  static void end_streaming() {}

  template <class F>
  static void expand(const Decoder<F>& decoder, const Segment& segment, uint8_t* out, bool widened, bool);

  template <class F, InputFormat kInputs, int n>
  class Sums;

  template <class F, class Call>
  static void with_input_format(InputFormat, Call call) {
    call(std::integral_constant<InputFormat, InputFormat::kFloat32>{});
  }
};

// 8 integers of 4 bits, the first in the low or the high half of the first byte.
inline int8x8_t nibbles(const uint8_t* from, bool high_first) {
  const uint8x8_t here = vld1_u8(from);
  const int8x8_t high = vshr_n_s8(vreinterpret_s8_u8(here), 4);
  const int8x8_t low = vshr_n_s8(vreinterpret_s8_u8(vshl_n_u8(high_first ? vld1_u8(from + 1) : here, 4)), 4);
  return high_first ? vzip1_s8(high, low) : vzip1_s8(low, high);
}

// Packed fields as elements, integers as integers of an element's width.
template <class F>
class Neon::Decoder {
 public:
  using Format = F;
  static constexpr int kBytes = element_bytes(F::kNumber);

  explicit Decoder(int field_bits) : width_(field_bits) {
    if constexpr (F::kPacked && kBytes == 2) lanes_ = kFieldLanes16.width(field_bits);
    if constexpr (F::kPacked && kBytes == 4) lanes_ = kFieldLanes32.width(field_bits);
  }

  // Calls `put(byte, elements)` for vectors of elements, those of the segment's first `count` fields rounded up
  // to a multiple of eight.
  template <class Put>
  void decode(const Segment& segment, int64_t count, Put put) const {
    const uint8_t* from = segment.bytes + (segment.position >> 3);
    if constexpr (F::kIntegers) return decode_integers(from, segment.position & 4, count, put);
    const int64_t width = width_;
    const Group first(*this, segment.base, segment.position & 7);
    if constexpr (kBytes == 2) {
      for (int64_t i = 0; i < count; i += 8) {
        put(2 * i, first.elements(from));
        from += width;
      }
    } else {
      const int64_t second_bit = static_cast<int64_t>(segment.position & 7) + 4 * width;
      const Group second(*this, segment.base, second_bit & 7);
      for (int64_t i = 0; i < count; i += 8) {
        put(4 * i, first.elements(from));
        put(4 * i + 16, second.elements(from + (second_bit >> 3)));
        from += width;
      }
    }
  }

 private:
  template <class Put>
  void decode_integers(const uint8_t* from, bool high_first, int64_t count, Put put) const {
    for (int64_t i = 0; i < count; i += 8) {
      const int8x8_t bytes = width_ == 4 ? nibbles(from, high_first) : vreinterpret_s8_u8(vld1_u8(from));
      const int16x8_t integers = vmovl_s8(bytes);
      if constexpr (kBytes == 2) {
        put(2 * i, vreinterpretq_u8_s16(integers));
      } else {
        put(4 * i, vreinterpretq_u8_s32(vmovl_s16(vget_low_s16(integers))));
        put(4 * i + 16, vreinterpretq_u8_s32(vmovl_high_s16(integers)));
      }
      from += width_;
    }
  }

  // The fields of a vector, the first of which starts `early` bits into a byte.
  class Group {
   public:
    Group(const Decoder& decoder, uint32_t base, uint64_t early) {
      const FieldLanes<kBytes>& lanes = decoder.lanes_[early];
      constexpr int kBits = 8 * kBytes;
      const uint32_t keep = 1u << (kBits - 1) | ((1u << (decoder.width_ - 1)) - 1);
      const int down = static_cast<int>(decoder.width_) - kBits;  // a shift to the right is a negative one
      top_ = vld1q_u8(lanes.top);
      below_ = vld1q_u8(lanes.below);
      up_ = vld1q_u8(lanes.shift);
      top_from_ = lanes.top_from;
      if constexpr (kBytes == 2) {
        down_ = vreinterpretq_u8_s16(vdupq_n_s16(static_cast<int16_t>(down)));
        keep_ = vreinterpretq_u8_u16(vdupq_n_u16(static_cast<uint16_t>(keep)));
        base_ = vreinterpretq_u8_u16(vdupq_n_u16(static_cast<uint16_t>(base)));
      } else {
        down_ = vreinterpretq_u8_s32(vdupq_n_s32(down));
        keep_ = vreinterpretq_u8_u32(vdupq_n_u32(keep));
        base_ = vreinterpretq_u8_u32(vdupq_n_u32(base));
      }
    }

    uint8x16_t elements(const uint8_t* from) const {
      const uint8x16_t tops = vqtbl1q_u8(vld1q_u8(from + top_from_), top_);
      const uint8x16_t belows = vqtbl1q_u8(vld1q_u8(from), below_);
      if constexpr (kBytes == 2) {
        const int16x8_t up = vreinterpretq_s16_u8(up_), rest = vsubq_s16(up, vdupq_n_s16(16));
        const uint16x8_t field = vorrq_u16(vshlq_u16(vreinterpretq_u16_u8(tops), up),
                                           vshlq_u16(vreinterpretq_u16_u8(belows), rest));
        const int16x8_t code = vshlq_s16(vreinterpretq_s16_u16(field), vreinterpretq_s16_u8(down_));
        const uint8x16_t kept = vandq_u8(vreinterpretq_u8_s16(code), keep_);
        return vreinterpretq_u8_u16(vaddq_u16(vreinterpretq_u16_u8(kept), vreinterpretq_u16_u8(base_)));
      } else {
        const int32x4_t up = vreinterpretq_s32_u8(up_), rest = vsubq_s32(up, vdupq_n_s32(32));
        const uint32x4_t field = vorrq_u32(vshlq_u32(vreinterpretq_u32_u8(tops), up),
                                           vshlq_u32(vreinterpretq_u32_u8(belows), rest));
        const int32x4_t code = vshlq_s32(vreinterpretq_s32_u32(field), vreinterpretq_s32_u8(down_));
        const uint8x16_t kept = vandq_u8(vreinterpretq_u8_s32(code), keep_);
        return vreinterpretq_u8_u32(vaddq_u32(vreinterpretq_u32_u8(kept), vreinterpretq_u32_u8(base_)));
      }
    }

   private:
    uint8x16_t top_, below_, up_, down_, keep_, base_;
    int64_t top_from_;
  };

  int64_t width_;
  const FieldLanes<kBytes>* lanes_ = nullptr;
};

// In byte k the number of bits set in bytes 0, ..., k of a word.
inline uint32_t running_counts(uint32_t word) {
  word -= word >> 1 & 0x55555555u;
  word = (word & 0x33333333u) + (word >> 2 & 0x33333333u);
  return ((word + (word >> 4)) & 0x0f0f0f0fu) * 0x01010101u;
}

inline int64_t stored_fields(const Segment& segment) {
  int64_t count = 0;
  for (int64_t i = 0; i < segment.columns / 32; ++i) count += running_counts(segment.bitmap[i]) >> 24;
  return segment.columns % 32 == 0 ? count : count + (running_counts(last_word(segment)) >> 24);
}

// Moves elements to those of 32 columns whose bits are set; `put` gets vectors, zeros where nothing is stored.
// Returns where the next elements are.
template <int kBytes, class Put>
inline const uint8_t* spread(const uint8_t* from, uint32_t word, int64_t start, Put put) {
  const uint64_t counts = running_counts(word);  // of 32: one byte is enough
  for (int k = 0; k < 4; ++k) {
    const uint8_t* elements = from + kBytes * ((counts << 8) >> (8 * k) & 0xff);
    const uint32_t bits = word >> (8 * k) & 0xff;
    if constexpr (kBytes == 2) {
      put(start + 16 * k, vqtbl1q_u8(vld1q_u8(elements), vld1q_u8(kSpread16.of[bits])));
    } else {
      const uint32_t low = bits & 15, high = bits >> 4;
      put(start + 32 * k, vqtbl1q_u8(vld1q_u8(elements), vld1q_u8(kSpread32.of[low])));
      elements += kSpread32.bytes[low];
      put(start + 32 * k + 16, vqtbl1q_u8(vld1q_u8(elements), vld1q_u8(kSpread32.of[high])));
    }
  }
  return from + kBytes * (counts >> 24);
}

// bfloat16 bits of 4 products.
inline uint16x4_t round_to_bfloat16(float32x4_t products) {
  const uint32x4_t bits = vreinterpretq_u32_f32(products);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  return vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
}

// Elements of what was decoded for consecutive columns of one group: integers are multiplied with its scale.
template <class F>
inline uint8x16_t scaled(const Segment& segment, int64_t column, uint8x16_t decoded) {
  if constexpr (!F::kIntegers) return decoded;
  const float32x4_t scale = vdupq_n_f32(float_of_bits(widen_float16(scale_bits(segment, column))));
  const auto product = [&](int32x4_t integers) { return vmulq_f32(vcvtq_f32_s32(integers), scale); };
  if constexpr (F::kNumber == Number::kFloat32) {
    return vreinterpretq_u8_f32(product(vreinterpretq_s32_u8(decoded)));
  } else {
    const int16x8_t integers = vreinterpretq_s16_u8(decoded);
    const float32x4_t low = product(vmovl_s16(vget_low_s16(integers))), high = product(vmovl_high_s16(integers));
    if constexpr (F::kNumber == Number::kFloat16) {
      return vreinterpretq_u8_f16(vcombine_f16(vcvt_f16_f32(low), vcvt_f16_f32(high)));
    } else {
      return vreinterpretq_u8_u16(vcombine_u16(round_to_bfloat16(low), round_to_bfloat16(high)));
    }
  }
}

// Calls `put(byte, elements)` for every vector of a segment, up to a multiple of 32 columns with a bitmap, with
// zeros where nothing is stored. Without a bitmap there is anything behind the last column.
template <class F, class Put>
inline void each_vector(const Neon::Decoder<F>& decoder, const Segment segment, Put put) {
  constexpr int kBytes = Neon::Decoder<F>::kBytes;
  const uint8_t* from = segment.bytes + (segment.position >> 3);
  const auto put_scaled = [&](int64_t byte, uint8x16_t decoded) {
    put(byte, scaled<F>(segment, byte / kBytes, decoded));
  };
  if constexpr (F::kBitmap) {
    Buffer stored;
    if constexpr (!F::kRaw) {
      decoder.decode(segment, stored_fields(segment),
                     [&](int64_t byte, uint8x16_t elements) { vst1q_u8(stored.bytes + byte, elements); });
      from = stored.bytes;
    }
    const int64_t whole = segment.columns / 32;
    for (int64_t i = 0; i < whole; ++i) {
      from = spread<kBytes>(from, segment.bitmap[i], 32 * kBytes * i, put_scaled);
    }
    if (segment.columns % 32 != 0) spread<kBytes>(from, last_word(segment), 32 * kBytes * whole, put_scaled);
  } else if constexpr (!F::kRaw) {
    decoder.decode(segment, segment.columns, put_scaled);
  } else {
    for (int64_t byte = 0; byte < kBytes * segment.columns; byte += 16) put(byte, vld1q_u8(from + byte));
  }
}

// A segment's elements in the order of columns, the escapes among them, and 64 bytes of zeros behind them.
template <class F>
inline void fill(Buffer& buffer, const Neon::Decoder<F>& decoder, const Segment& segment) {
  constexpr int kBytes = Neon::Decoder<F>::kBytes;
  const auto put = [&](int64_t byte, uint8x16_t elements) { vst1q_u8(buffer.bytes + byte, elements); };
  each_vector(decoder, segment, put);
  for (int64_t i = 0; i < 64; i += 16) vst1q_u8(buffer.bytes + kBytes * segment.columns + i, vdupq_n_u8(0));
  for (int64_t i = 0; i < segment.escapes.count; ++i) {
    const uint32_t bits = escape_bits(segment.escapes, i, F::kNumber);
    std::memcpy(buffer.bytes + kBytes * (segment.escapes.index[i] - segment.first_index), &bits, kBytes);
  }
}

// The float32 bits of 4 elements of 16 bits; NaN keeps its payload.
template <Number kNumber>
inline uint8x16_t widen4(uint16x4_t elements) {
  if constexpr (kNumber == Number::kBFloat16) {
    return vreinterpretq_u8_u32(vshlq_n_u32(vmovl_u16(elements), 16));
  } else {
    const uint32x4_t values = vreinterpretq_u32_f32(vcvt_f32_f16(vreinterpret_f16_u16(elements)));
    // The conversion sets the bit that makes a NaN a quiet one.
    const uint32x4_t fields = vshll_n_u16(elements, 13), magnitude = vandq_u32(fields, vdupq_n_u32(0x0fffffff));
    const uint32x4_t nan = vcgtq_u32(magnitude, vdupq_n_u32(0x0f800000));
    const uint32x4_t quiet = vbicq_u32(vandq_u32(nan, vdupq_n_u32(0x00400000)), fields);
    return vreinterpretq_u8_u32(vbicq_u32(values, quiet));
  }
}

// Writes the bytes of a vector that are among the first `left`.
inline void write_first(uint8_t* to, int64_t left, uint8x16_t value) {
  if (left >= 16) return vst1q_u8(to, value);
  uint8_t bytes[16];
  vst1q_u8(bytes, value);
  std::memcpy(to, bytes, left);
}

template <class F>
void Neon::expand(const Decoder<F>& decoder, const Segment& segment, uint8_t* out, bool widened, bool) {
  constexpr int kBytes = Decoder<F>::kBytes;
  widened = widened && kBytes == 2;
  if (!widened && segment.columns % 32 == 0 && segment.escapes.count == 0) {
    const auto put = [&](int64_t byte, uint8x16_t elements) { vst1q_u8(out + byte, elements); };
    return each_vector(decoder, segment, put);
  }
  Buffer buffer;
  fill(buffer, decoder, segment);
  const int64_t end = (widened ? 4 : kBytes) * segment.columns;
  for (int64_t byte = 0; byte < end; byte += 16) {
    uint8x16_t elements;
    if (kBytes == 2 && widened) {
      elements = widen4<F::kNumber>(vreinterpret_u16_u8(vld1_u8(buffer.bytes + byte / 2)));
    } else {
      elements = vld1q_u8(buffer.bytes + byte);
    }
    write_first(out + byte, end - byte, elements);
  }
}

// The float32 values of 16 elements.
template <Number kNumber>
inline void widen_step(const uint8_t* elements, float32x4_t (&weights)[4]) {
  if constexpr (kNumber == Number::kFloat32) {
    for (int v = 0; v < 4; ++v) weights[v] = vreinterpretq_f32_u8(vld1q_u8(elements + 16 * v));
  } else {
    for (int v = 0; v < 4; v += 2) {
      const uint16x8_t both = vreinterpretq_u16_u8(vld1q_u8(elements + 8 * v));
      if constexpr (kNumber == Number::kBFloat16) {
        const uint16x8_t zero = vdupq_n_u16(0);
        weights[v] = vreinterpretq_f32_u16(vzip1q_u16(zero, both));
        weights[v + 1] = vreinterpretq_f32_u16(vzip2q_u16(zero, both));
      } else {
        weights[v] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(both)));
        weights[v + 1] = vcvt_high_f32_f16(vreinterpretq_f16_u16(both));
      }
    }
  }
}

// sums[i] += elements · x[i], in lanes; the order of additions depends on n only.
template <Number kNumber, int n, int places>
inline void multiply(const Buffer& buffer, int64_t columns, const uint8_t* x, int first, float32x4_t* sums) {
  // An addition waits for the one before it, so there are several chains of them.
  constexpr int kBytes = element_bytes(kNumber), kChains = n <= 4 ? 4 : 2;
  float32x4_t chains[n][kChains];
  for (int i = 0; i < n; ++i) {
    chains[i][0] = sums[i];
    for (int k = 1; k < kChains; ++k) chains[i][k] = vdupq_n_f32(0);
  }
  for (int64_t column = 0; column < columns; column += 16) {
    float32x4_t weights[4];
    widen_step<kNumber>(buffer.bytes + kBytes * column, weights);
    for (int i = 0; i < n; ++i) {
      const uint8_t* const at = input_at<InputFormat::kFloat32, places>(x, first + i, column);
      const auto* input = reinterpret_cast<const float*>(at);
      for (int v = 0; v < 4; ++v) {
        float32x4_t& sum = chains[i][v % kChains];
        sum = vfmaq_f32(sum, weights[v], vld1q_f32(input + 4 * v));
      }
    }
  }
  for (int i = 0; i < n; ++i) {
    for (int k = 1; k < kChains; ++k) chains[i][0] = vaddq_f32(chains[i][0], chains[i][k]);
    sums[i] = chains[i][0];
  }
}

// Sums of products with n inputs, in lanes.
template <class F, InputFormat kInputs, int n>
class Neon::Sums {
 public:
  Sums() {
    for (float32x4_t& sum : sums_) sum = vdupq_n_f32(0);
  }

  void add(const Decoder<F>& decoder, const Segment& segment, const uint8_t* x) {
    Buffer buffer;
    fill(buffer, decoder, segment);
    for (int i = 0; i < n; i += kAtOnce) {
      multiply<F::kNumber, kAtOnce, n>(buffer, segment.columns, x, i, sums_ + i);
    }
  }

  void store(float (&sums)[n]) const {
    for (int i = 0; i < n; ++i) sums[i] = vaddvq_f32(sums_[i]);
  }

 private:
  static constexpr int kAtOnce = n < 8 ? n : 8;  // of whose sums each has a register

  float32x4_t sums_[n];
};

InputFormat input_format(Number, Number) { return InputFormat::kFloat32; }

bool supported() { return true; }

}  // namespace

const RowKernels kNeon = {"neon", supported, input_format, expand_rows<Neon>, multiply_rows_of_any<Neon>};

}  // namespace endor

#endif  // __aarch64__
