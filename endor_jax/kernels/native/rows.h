// The loops over rows and segments that all instruction sets share, over two functions that each provides.
//
// An instruction set is a struct with
//   template <F> class Decoder               made from the width of a field
//   template <F> static void expand(const Decoder<F>&, const Segment&, uint8_t* out, bool widen, bool streaming)
//   static void end_streaming()              after rows that were written past the caches
//   template <F, InputFormat, n> class Sums  of the products of a row with n inputs:
//     void add(const Decoder<F>&, const Segment&, const uint8_t* x)     x as in `input_at`, from the segment on
//     void store(float (&sums)[n])
//   template <F, Call> static void with_input_format(InputFormat, Call)
// Both put a segment's escapes in the place of what they decoded: so a product is the same, bit for bit,
// whatever codec a matrix is stored with. It lives in an anonymous namespace, as these loops do, and has one
// source file, compiled for it (setup.py): so nothing made for it is linked into code that runs on a lesser
// processor (inlined.h).

#include <type_traits>

#include "floats.h"
#include "matrix.h"
#include "row_kernels.h"

namespace endor {
namespace {

// What a decoder is compiled for; the width of a field, the base of the exponents and scales are data.
template <Number kNumber_, Kind kKind_, bool kBitmap_>
struct Format {
  static constexpr Number kNumber = kNumber_;
  static constexpr Kind kKind = kKind_;
  static constexpr bool kRaw = kKind == Kind::kRaw, kPacked = kKind == Kind::kPacked;
  static constexpr bool kIntegers = kKind == Kind::kIntegers, kBitmap = kBitmap_;
  static constexpr bool kEscapes = kPacked;  // whether there can be any
};

// Calls `call` with the Format of a layout; those with integers are compiled only where they are wanted.
template <bool kWithIntegers = true, class Call>
void with_format(const Layout& layout, Call call) {
  const auto with_number = [&](auto number) {
    constexpr Number kNumber = decltype(number)::value;
    const auto with_kind = [&](auto kind) {
      constexpr Kind kKind = decltype(kind)::value;
      layout.has_bitmap() ? call(Format<kNumber, kKind, true>{}) : call(Format<kNumber, kKind, false>{});
    };
    switch (layout.kind()) {
      case Kind::kRaw:
        return with_kind(std::integral_constant<Kind, Kind::kRaw>{});
      case Kind::kPacked:
        return with_kind(std::integral_constant<Kind, Kind::kPacked>{});
      case Kind::kIntegers:
        if constexpr (kWithIntegers) with_kind(std::integral_constant<Kind, Kind::kIntegers>{});
        return;
    }
  };
  switch (layout.number) {
    case Number::kBFloat16:
      return with_number(std::integral_constant<Number, Number::kBFloat16>{});
    case Number::kFloat16:
      return with_number(std::integral_constant<Number, Number::kFloat16>{});
    case Number::kFloat32:
      return with_number(std::integral_constant<Number, Number::kFloat32>{});
  }
}

// Hands out the escapes of some rows, segment after segment.
class EscapeWalk {
 public:
  EscapeWalk(const PartView& part, int64_t first, int64_t last)
      : rows_(part.escapes(first, last)), bytes_(element_bytes(part.layout().number)) {}

  // Gives a segment its escapes; all of them lie in it, also those of a damaged list.
  void give(Segment& segment) {
    if (next_ >= rows_.count) return;
    const int64_t from = next_;
    while (next_ < rows_.count && rows_.index[next_] - segment.first_index < static_cast<uint32_t>(segment.columns)) {
      ++next_;
    }
    segment.escapes = {rows_.index + from, rows_.bits + from * bytes_, next_ - from};
  }

 private:
  Escapes rows_;
  int bytes_;
  int64_t next_ = 0;
};

template <class Isa>
void expand_rows(const PartView& part, int64_t first, int64_t last, uint8_t* out, bool widen, bool streaming) {
  const Layout& layout = part.layout();
  const int64_t bytes = widen ? 4 : element_bytes(layout.number);
  EscapeWalk escapes(part, first, last);
  with_format(layout, [&](auto format) {
    using F = decltype(format);
    const typename Isa::template Decoder<F> decoder(layout.field_bits);
    for (int64_t row = first; row < last; ++row) {
      uint8_t* const to = out + (row - first) * layout.columns * bytes;
      for (int64_t s = 0; s < layout.segments(); ++s) {
        Segment segment = part.segment(row, s);
        escapes.give(segment);
        Isa::expand(decoder, segment, to + s * layout.segment() * bytes, widen, streaming);
      }
    }
  });
  if (streaming) Isa::end_streaming();
}

template <class Isa, class F, InputFormat kInputs, int places>
void multiply_rows(const PartView& part, int64_t first, int64_t last, const Inputs& inputs, float* sums) {
  const Layout& layout = part.layout();
  const typename Isa::template Decoder<F> decoder(layout.field_bits);
  EscapeWalk escapes(part, first, last);
  for (int64_t row = first; row < last; ++row) {
    typename Isa::template Sums<F, kInputs, places> total;
    for (int64_t s = 0; s < layout.segments(); ++s) {
      Segment segment = part.segment(row, s);
      escapes.give(segment);
      total.add(decoder, segment, input_at<kInputs, places>(inputs.data, 0, s * layout.segment()));
    }
    float row_sums[places];
    total.store(row_sums);
    for (int64_t i = 0; i < inputs.count; ++i) sums[(row - first) * inputs.count + i] = row_sums[i];
  }
}

template <class Isa>
void multiply_rows_of_any(const PartView& part, int64_t first, int64_t last, const Inputs& inputs, float* sums) {
  with_format(part.layout(), [&](auto format) {
    using F = decltype(format);
    const auto with_count = [&](auto input_format) {
      constexpr InputFormat kInputs = decltype(input_format)::value;
      switch (places_for(inputs.count)) {
        case 1:
          return multiply_rows<Isa, F, kInputs, 1>(part, first, last, inputs, sums);
        case 2:
          return multiply_rows<Isa, F, kInputs, 2>(part, first, last, inputs, sums);
        case 4:
          return multiply_rows<Isa, F, kInputs, 4>(part, first, last, inputs, sums);
        case 8:
          return multiply_rows<Isa, F, kInputs, 8>(part, first, last, inputs, sums);
        default:
          return multiply_rows<Isa, F, kInputs, kMostInputs>(part, first, last, inputs, sums);
      }
    };
    Isa::template with_input_format<F>(inputs.format, with_count);
  });
}

}  // namespace
}  // namespace endor
