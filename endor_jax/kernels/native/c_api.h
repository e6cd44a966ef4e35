// The C interface of the extension, without XLA. Numbers are those of `Number`; endor_jax/native.py has the
// same declarations for ctypes. Functions that can fail return null, or what is wrong.
#ifndef ENDOR_JAX_KERNELS_NATIVE_C_API_H_
#define ENDOR_JAX_KERNELS_NATIVE_C_API_H_

#include <cstdint>

#define ENDOR_EXPORT __attribute__((visibility("default")))

extern "C" {

// `FieldLayout`, the rows of the whole matrix, and the words of its parts.
struct EndorMatrix {
  int32_t number;
  int32_t field_bits;
  int64_t rows;
  int64_t columns;
  int64_t header;
  int64_t bitmap;
  int64_t offsets;
  int64_t bases;
  int64_t scales;
  int64_t escape_capacity;
  int64_t matrix_rows;
  int64_t parts;
  const uint32_t* const* words;
  const int64_t* counts;
};

// A dense matrix of element bits, row after row, and the codec it is to have. packed, has_bitmap: 0 or 1.
struct EndorDense {
  int32_t number;
  int32_t field_bits;
  int32_t packed;
  int32_t has_bitmap;
  int64_t rows;
  int64_t columns;
  const void* bits;
};

// What an encoded matrix has: elements with a field, escapes, and elements other than +0.0.
struct EndorCounts {
  int64_t fields;
  int64_t escapes;
  int64_t nonzero;
};

// Where the pieces of an encoded matrix go; see `EncodedMatrix` of endor_jax/format/encoded_matrix.py. bases:
// as they were counted, null for raw; bitmap: null for dense codecs.
struct EndorPieces {
  const uint8_t* bases;
  uint32_t* bitmap;
  uint32_t* stream;
  int64_t stream_words;
  uint32_t* escape_index;
  void* escape_bits;
  int64_t escapes;
};

// Names of the instruction sets this processor has, best first, separated by spaces.
ENDOR_EXPORT const char* endor_instruction_sets();

// One thread. instruction_set: a name, or "" for the best.
ENDOR_EXPORT const char* endor_expand(const EndorMatrix* matrix, const char* instruction_set, int32_t widen,
                                      void* out);

// One thread. x is (x_count, columns), out is (x_count, matrix_rows).
ENDOR_EXPORT const char* endor_multiply(const EndorMatrix* matrix, const char* instruction_set, int32_t x_number,
                                        int64_t x_count, const void* x, int32_t out_number, void* out);

// The first half of encoding: bases (null for raw) and fields have one item per segment, row by row.
ENDOR_EXPORT const char* endor_count_fields(const EndorDense* matrix, const char* instruction_set, uint8_t* bases,
                                            int64_t* fields, EndorCounts* counts);

// The second half: fills the pieces, which are as long as was counted.
ENDOR_EXPORT const char* endor_write_fields(const EndorDense* matrix, const char* instruction_set,
                                            const EndorPieces* pieces);
}

#endif  // ENDOR_JAX_KERNELS_NATIVE_C_API_H_
