// The loops over rows and segments that all instruction sets share, over two functions that each provides.
//
// An instruction set is a struct with
//   static constexpr bool wide_streams       whether `expand` can write past the caches
//   template <Format> static void expand(const Segment&, uint8_t* out, bool widen, bool streaming);
//   template <Format, InputFormat, int n> struct Sums { void add(const Segment&, const uint8_t* const x[n]);
//                                                       void store(float sums[n]); };
// It lives in an anonymous namespace, as these loops do, and has one source file, compiled for it (setup.py):
// so nothing made for it is linked into code that runs on a lesser processor (inlined.h).

#include <type_traits>

#include "floats.h"
#include "matrix.h"
#include "row_kernels.h"

namespace endor {
namespace {

// What a decoder is compiled for; the width of a field and the base of the exponents are data.
template <Number kNumber_, bool kPacked_, bool kBitmap_>
struct Format {
  static constexpr Number kNumber = kNumber_;
  static constexpr bool kPacked = kPacked_, kBitmap = kBitmap_;
};

// Calls `call` with the Format of a layout.
template <class Call>
void with_format(const Layout& layout, Call call) {
  const auto with_number = [&](auto number) {
    constexpr Number kNumber = decltype(number)::value;
    if (layout.packed()) {
      layout.has_bitmap() ? call(Format<kNumber, true, true>{}) : call(Format<kNumber, true, false>{});
    } else {
      layout.has_bitmap() ? call(Format<kNumber, false, true>{}) : call(Format<kNumber, false, false>{});
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

// Writes the escapes of rows first, ... over their expanded elements.
template <class Isa>
void write_escapes(const PartView& part, int64_t first, int64_t last, uint8_t* out, bool widened) {
  const Layout& layout = part.layout();
  const Escapes escapes = part.escapes(first, last);
  const uint64_t begin = static_cast<uint64_t>(first * layout.columns);
  const uint64_t size = static_cast<uint64_t>((last - first) * layout.columns);
  for (int64_t i = 0; i < escapes.count; ++i) {
    const uint64_t place = escapes.index[i] - begin;
    if (place >= size) continue;  // a damaged list
    const uint32_t bits = escape_bits(escapes, i, layout.number);
    const uint32_t written = widened ? widen(bits, layout.number) : bits;
    const int bytes = widened ? 4 : element_bytes(layout.number);
    std::memcpy(out + place * bytes, &written, bytes);
  }
}

template <class Isa>
void expand_rows(const PartView& part, int64_t first, int64_t last, uint8_t* out, bool widen, bool streaming) {
  const Layout& layout = part.layout();
  const int64_t bytes = widen ? 4 : element_bytes(layout.number);
  with_format(layout, [&](auto format) {
    using F = decltype(format);
    const typename Isa::template Decoder<F> decoder(layout.field_bits);
    for (int64_t row = first; row < last; ++row) {
      uint8_t* const to = out + (row - first) * layout.columns * bytes;
      for (int64_t s = 0; s < layout.segments(); ++s) {
        Isa::expand(decoder, part.segment(row, s), to + s * layout.segment() * bytes, widen, streaming);
      }
    }
  });
  if (streaming) Isa::end_streaming();
  write_escapes<Isa>(part, first, last, out, widen);
}

// One input's value at a column.
inline float input_value(const Inputs& inputs, int64_t i, int64_t column) {
  const uint8_t* row = inputs.data + i * inputs.row_bytes;
  if (inputs.format == InputFormat::kBFloat16) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * column, 2);
    return float_of_bits(static_cast<uint32_t>(bits) << 16);
  }
  int64_t place = column;
  if (inputs.format == InputFormat::kFloat32EvenOdd) {
    place = column / 32 * 32 + (column % 2) * 16 + column % 32 / 2;
  }
  float value;
  std::memcpy(&value, row + 4 * place, 4);
  return value;
}

// Which columns a codec without a bitmap keeps: all but the escaped ones, whose fields mean nothing.
class Kept {
 public:
  Kept() {
    for (uint32_t& word : words_) word = ~0u;
  }
  const uint32_t* all() const { return words_; }
  void drop(int64_t column) { words_[column / 32] &= ~(1u << column % 32); }
  void restore(int64_t column) { words_[column / 32] |= 1u << column % 32; }

 private:
  uint32_t words_[kSegment / 32];
};

template <class Isa, class F, InputFormat kInputs, int n>
void multiply_rows(const PartView& part, int64_t first, int64_t last, const Inputs& inputs, float* sums) {
  const Layout& layout = part.layout();
  const typename Isa::template Decoder<F> decoder(layout.field_bits);
  constexpr int64_t input_bytes = kInputs == InputFormat::kBFloat16 ? 2 : 4;
  const Escapes escapes = part.escapes(first, last);
  Kept kept;
  int64_t next = 0;  // escape
  for (int64_t row = first; row < last; ++row) {
    typename Isa::template Sums<F, kInputs, n> total;
    const int64_t from = next;
    const auto row_start = static_cast<uint64_t>(row * layout.columns);
    while (next < escapes.count && escapes.index[next] - row_start < static_cast<uint64_t>(layout.columns)) ++next;
    int64_t dropped = from;
    for (int64_t s = 0; s < layout.segments(); ++s) {
      Segment segment = part.segment(row, s);
      const int64_t start = s * layout.segment();
      const int64_t first_dropped = dropped;
      if (!F::kBitmap) {
        segment.bitmap = kept.all();
        for (; dropped < next; ++dropped) {
          const int64_t column = static_cast<int64_t>(escapes.index[dropped] - row_start) - start;
          if (column < 0 || column >= segment.columns) break;
          kept.drop(column);
        }
      }
      const uint8_t* x[n];
      for (int i = 0; i < n; ++i) {
        x[i] = inputs.data + smaller<int64_t>(i, inputs.count - 1) * inputs.row_bytes + start * input_bytes;
      }
      total.add(decoder, segment, x);
      for (int64_t i = first_dropped; i < dropped; ++i) {
        kept.restore(static_cast<int64_t>(escapes.index[i] - row_start) - start);
      }
    }
    float row_sums[n];
    total.store(row_sums);
    for (int64_t i = 0; i < inputs.count; ++i) {
      float sum = row_sums[i];
      for (int64_t e = from; e < next; ++e) {
        const auto column = static_cast<int64_t>(escapes.index[e] - row_start);
        sum += float_of_bits(widen(escape_bits(escapes, e, layout.number), layout.number)) *
               input_value(inputs, i, column);
      }
      sums[(row - first) * inputs.count + i] = sum;
    }
  }
}

template <class Isa>
void multiply_rows_of_any(const PartView& part, int64_t first, int64_t last, const Inputs& inputs, float* sums) {
  with_format(part.layout(), [&](auto format) {
    using F = decltype(format);
    const auto with_count = [&](auto input_format) {
      constexpr InputFormat kInputs = decltype(input_format)::value;
      if (inputs.count <= 1) return multiply_rows<Isa, F, kInputs, 1>(part, first, last, inputs, sums);
      if (inputs.count <= 2) return multiply_rows<Isa, F, kInputs, 2>(part, first, last, inputs, sums);
      if (inputs.count <= 4) return multiply_rows<Isa, F, kInputs, 4>(part, first, last, inputs, sums);
      if (inputs.count <= 8) return multiply_rows<Isa, F, kInputs, 8>(part, first, last, inputs, sums);
      return multiply_rows<Isa, F, kInputs, kMostInputs>(part, first, last, inputs, sums);
    };
    Isa::template with_input_format<F>(inputs.format, with_count);
  });
}

}  // namespace
}  // namespace endor
