// What encodes a dense matrix: its fields counted first, so that the caller can set aside exactly what they
// take, then written. docs/format.md, "Codecs" and "Part"; endor_jax/format/encode.py is the oracle.
#ifndef ENDOR_JAX_KERNELS_NATIVE_ENCODE_H_
#define ENDOR_JAX_KERNELS_NATIVE_ENCODE_H_

#include <cstdint>

#include "matrix.h"

namespace endor {

// Element bits, row after row, and the codec they are to have. Of the layout only what concerns the codec is
// used: where sections would be plays no part.
struct DenseMatrix {
  Layout layout;
  const uint8_t* bits;

  // How many exponents the codes of a packed field tell apart.
  ENDOR_INLINED int window() const { return 1 << (layout.field_bits - 1 - mantissa_bits(layout.number)); }
};

// fields: elements that have a field. nonzero: elements other than +0.0.
struct EncodedCounts {
  int64_t fields, escapes, nonzero;
};

// Where the pieces of a matrix go, as long as they were counted. bitmap: null without one.
struct EncodedPieces {
  const uint8_t* bases;
  uint32_t* bitmap;
  uint8_t* stream;
  int64_t stream_bytes;  // a whole number of words
  uint32_t* escape_index;
  uint8_t* escape_bits;
  int64_t escapes;
};

struct EncodeKernels {
  const char* name;
  // Whether this processor has the instructions.
  bool (*supported)();
  // Per segment the base (not for `raw`) and the number of fields, and the sums.
  EncodedCounts (*count)(const DenseMatrix& matrix, uint8_t* bases, int64_t* fields);
  // Whether the pieces were filled exactly. They are not if the elements have changed since they were counted;
  // nothing is written behind them in any case.
  bool (*write)(const DenseMatrix& matrix, const EncodedPieces& pieces);
};

extern const EncodeKernels kScalarEncode;
#if defined(__x86_64__)
extern const EncodeKernels kAvx512Encode;
#endif

// The kernels called `name`, or the best of those the processor has if it is empty. Null if there are none of
// that name here, or the processor lacks the instructions.
const EncodeKernels* encode_kernels(const char* name);

}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_ENCODE_H_
