// Portable C++: for any processor, and the plain twin of the vector instruction sets.

#include "rows.h"

namespace endor {
namespace {

struct Scalar {
  // Element bits from fields; docs/format.md, "Codecs".
  template <class F>
  class Decoder {
   public:
    using Format = F;

    explicit Decoder(int field_bits) : width_(field_bits) {}

    // The element of column c, whose field starts at bit `position`.
    uint32_t element(const Segment& segment, int64_t c, uint64_t position) const {
      uint64_t window;
      std::memcpy(&window, segment.bytes + (position >> 3), 8);
      const auto field = static_cast<uint32_t>(window >> (position & 7));
      if constexpr (F::kIntegers) {
        const int up = 32 - width_, integer = static_cast<int>(field << up) >> up;
        return rounded<F::kNumber>(static_cast<float>(integer) *
                                   float_of_bits(widen_float16(scale_bits(segment, c))));
      }
      if (F::kRaw) return F::kNumber == Number::kFloat32 ? field : field & 0xffffu;
      constexpr int kBits = 8 * element_bytes(F::kNumber);
      const uint32_t sign = (field >> (width_ - 1) & 1u) << (kBits - 1);
      return sign | ((field & ((1u << (width_ - 1)) - 1)) + segment.base);
    }

    int width() const { return width_; }

   private:
    int width_;
  };

  static void end_streaming() {}

  // Calls `use(column, element)` for every column, zeros included.
  template <class F, class Use>
  static void each(const Decoder<F>& decoder, const Segment& segment, Use use) {
    uint64_t position = segment.position;
    int64_t escape = 0;
    for (int64_t c = 0; c < segment.columns; ++c) {
      const bool stored = !F::kBitmap || (segment.bitmap[c / 32] >> (c % 32) & 1u);
      uint32_t bits = stored ? decoder.element(segment, c, position) : 0u;
      position += stored ? decoder.width() : 0;
      while (escape < segment.escapes.count && segment.escapes.index[escape] - segment.first_index <= c) {
        bits = escape_bits(segment.escapes, escape++, F::kNumber);
      }
      use(c, bits);
    }
  }

  template <class F>
  static void expand(const Decoder<F>& decoder, const Segment& segment, uint8_t* out, bool widened, bool) {
    each(decoder, segment, [&](int64_t column, uint32_t bits) {
      if (widened) {
        bits = widen(bits, F::kNumber);
        std::memcpy(out + 4 * column, &bits, 4);
      } else {
        std::memcpy(out + element_bytes(F::kNumber) * column, &bits, element_bytes(F::kNumber));
      }
    });
  }

  template <class F, InputFormat kInputs, int n>
  class Sums {
   public:
    void add(const Decoder<F>& decoder, const Segment& segment, const uint8_t* x) {
      each(decoder, segment, [&](int64_t column, uint32_t bits) {
        const float weight = float_of_bits(widen(bits, F::kNumber));
        for (int i = 0; i < n; ++i) {
          float input;
          std::memcpy(&input, input_at<kInputs, n>(x, i, column), 4);
          sums_[i] += weight * input;
        }
      });
    }

    void store(float (&sums)[n]) const {
      for (int i = 0; i < n; ++i) sums[i] = sums_[i];
    }

   private:
    float sums_[n] = {};
  };

  template <class F, class Call>
  static void with_input_format(InputFormat, Call call) {
    call(std::integral_constant<InputFormat, InputFormat::kFloat32>{});
  }
};

bool supported() { return true; }

InputFormat input_format(Number, Number) { return InputFormat::kFloat32; }

}  // namespace

const RowKernels kScalar = {"scalar", supported, input_format, expand_rows<Scalar>, multiply_rows_of_any<Scalar>};

}  // namespace endor
