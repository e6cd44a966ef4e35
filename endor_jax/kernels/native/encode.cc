// Encoding in portable C++, and the choice among the encoders.

#include "encode.h"

#include <cstring>
#include <type_traits>

#include "encode_rows.h"

namespace endor {
namespace {

template <Number kNumber>
uint32_t element(const uint8_t* bits, int64_t column) {
  uint32_t loaded = 0;
  std::memcpy(&loaded, bits + column * element_bytes(kNumber), element_bytes(kNumber));
  return loaded;
}

struct ScalarEncoder {
  template <class F>
  static CountedSegment count(const uint8_t* bits, int64_t columns, int window) {
    constexpr int kMantissa = mantissa_bits(F::kNumber), kTop = 8 * element_bytes(F::kNumber) - 1;
    constexpr uint32_t kAllOnes = (1u << (kTop - kMantissa)) - 1;
    int64_t zeros = 0;
    if (!F::kPacked) {
      for (int64_t c = 0; c < columns; ++c) zeros += element<F::kNumber>(bits, c) == 0;
      return {0, columns - zeros, columns - zeros};
    }
    uint32_t histogram[2][256] = {};  // two, because neighbours often have the same exponent
    for (int64_t c = 0; c < columns; ++c) {
      const uint32_t bits_here = element<F::kNumber>(bits, c);
      zeros += bits_here == 0;
      ++histogram[c % 2][bits_here >> kMantissa & kAllOnes];
    }
    int lowest = kAllOnes, highest = 0;
    int64_t packable = 0;
    for (int e = 1; e < static_cast<int>(kAllOnes); ++e) {
      const uint32_t count = histogram[0][e] += histogram[1][e];
      packable += count;
      if (count == 0) continue;
      lowest = smaller(lowest, e);
      highest = e;
    }
    histogram[0][0] = 0;
    const Window best =
        best_window(lowest, highest, packable, window, [&](int e) { return histogram[0][e]; });
    return {best.base, best.covered, columns - zeros};
  }

  template <class F>
  class Writer {
   public:
    Writer(const DenseMatrix& matrix, const EncodedPieces& pieces)
        : pieces_(pieces),
          width_(matrix.layout.field_bits),
          window_(matrix.window()),
          stream_(pieces.stream),
          stream_end_(pieces.stream + pieces.stream_bytes) {}

    void add(const DenseSegment& segment) {
      Element fields[kSegment + 1];
      int64_t count = 0;
      const FittingMagnitudes fitting = fitting_magnitudes<F::kNumber>(segment.base, F::kPacked ? window_ : 1);
      const uint32_t base = static_cast<uint32_t>(segment.base) << mantissa_bits(F::kNumber);
      const int sign_down = kTop - (width_ - 1);
      for (int64_t first = 0; first < segment.columns; first += 32) {
        const int64_t here = smaller<int64_t>(32, segment.columns - first);
        // No branches: which elements are stored is as good as random. Bits enter their words on top.
        uint32_t candidates = ~0u, stored = 0;
        for (int64_t c = 0; c < here; ++c) {
          const uint32_t bits = element<F::kNumber>(segment.bits, first + c), magnitude = bits & kMagnitude;
          const uint32_t candidate = !F::kBitmap || bits != 0;
          const uint32_t fits = F::kPacked ? magnitude - fitting.first < fitting.count : candidate;
          const uint32_t field = F::kPacked ? (magnitude - base) | (bits & ~kMagnitude) >> sign_down : bits;
          fields[count] = static_cast<Element>(F::kBitmap ? field : field & (0u - fits));
          count += F::kBitmap ? fits : 1;
          if (F::kBitmap) candidates = candidates >> 1 | candidate << 31;
          stored = stored >> 1 | fits << 31;
        }
        candidates >>= 32 - here;
        stored >>= 32 - here;
        if (F::kBitmap) segment.bitmap[first / 32] = stored;
        for (uint32_t escaped = candidates & ~stored; escaped != 0; escaped &= escaped - 1) {
          escape(segment, first + __builtin_ctz(escaped));
        }
      }
      F::kPacked ? pack(fields, count) : append(fields, count * kBytes);
    }

    bool finish() {
      if (waiting_bits_ > 0) append(&waiting_, 4);
      const int64_t room = stream_end_ - stream_;
      if (!F::kPacked && room < 4) std::memset(stream_, 0, room);
      return !overfull_ && room < (F::kPacked ? 1 : 4) && escapes_ == pieces_.escapes;
    }

   private:
    static constexpr int kBytes = element_bytes(F::kNumber);
    static constexpr int kTop = 8 * kBytes - 1;
    static constexpr uint32_t kMagnitude = (1u << kTop) - 1;
    using Element = std::conditional_t<kBytes == 4, uint32_t, uint16_t>;

    void escape(const DenseSegment& segment, int64_t column) {
      if (escapes_ == pieces_.escapes) {
        overfull_ = true;
        return;
      }
      pieces_.escape_index[escapes_] = segment.index + static_cast<uint32_t>(column);
      std::memcpy(pieces_.escape_bits + escapes_ * kBytes, segment.bits + column * kBytes, kBytes);
      ++escapes_;
    }

    // Joins fields to words.
    void pack(const Element* fields, int64_t count) {
      uint32_t words[kSegment + 1];
      int64_t made = 0;
      uint64_t waiting = waiting_;
      int waiting_bits = waiting_bits_;
      for (int64_t i = 0; i < count; ++i) {
        waiting |= static_cast<uint64_t>(fields[i]) << waiting_bits;
        waiting_bits += width_;
        if (waiting_bits < 32) continue;
        words[made++] = static_cast<uint32_t>(waiting);
        waiting >>= 32;
        waiting_bits -= 32;
      }
      waiting_ = waiting;
      waiting_bits_ = waiting_bits;
      append(words, 4 * made);
    }

    void append(const void* bytes, int64_t count) {
      if (stream_end_ - stream_ < count) {
        overfull_ = true;
        return;
      }
      std::memcpy(stream_, bytes, count);
      stream_ += count;
    }

    EncodedPieces pieces_;
    int width_, window_;
    uint8_t* stream_;
    uint8_t* stream_end_;
    uint64_t waiting_ = 0;  // bits of fields that do not fill a word yet
    int waiting_bits_ = 0;
    int64_t escapes_ = 0;
    bool overfull_ = false;
  };
};

bool supported() { return true; }

const EncodeKernels* const kAll[] = {
#if defined(__x86_64__)
    &kAvx512Encode,
#endif
    &kScalarEncode,
};

}  // namespace

const EncodeKernels kScalarEncode = {"scalar", supported, count_rows<ScalarEncoder>, write_rows<ScalarEncoder>};

const EncodeKernels* encode_kernels(const char* name) {
  for (const EncodeKernels* kernels : kAll) {
    if ((*name == '\0' || std::strcmp(name, kernels->name) == 0) && kernels->supported()) return kernels;
  }
  return nullptr;
}

}  // namespace endor
