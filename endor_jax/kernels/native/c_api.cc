// Plain C entry points: what Python calls through ctypes, and what the test driver links with.

#include "c_api.h"

#include <new>

#include "encode.h"
#include "instruction_sets.h"
#include "operations.h"

namespace endor {
namespace {

Matrix matrix_of(const EndorMatrix* described) {
  Matrix matrix{{static_cast<Number>(described->number), described->field_bits, described->rows,
                 described->columns, described->header, described->bitmap, described->offsets, described->bases,
                 described->scales, described->escape_capacity},
                described->matrix_rows,
                {}};
  for (int64_t i = 0; i < described->parts; ++i) {
    matrix.parts.push_back({described->words[i], described->counts[i]});
  }
  return matrix;
}

DenseMatrix dense_matrix_of(const EndorDense* described) {
  Layout layout = {};
  layout.number = static_cast<Number>(described->number);
  layout.field_bits = described->field_bits;
  layout.rows = described->rows;
  layout.columns = described->columns;
  layout.bitmap = described->has_bitmap ? 0 : -1;
  layout.bases = described->packed ? 0 : -1;
  layout.scales = -1;
  return {layout, static_cast<const uint8_t*>(described->bits)};
}

// What an operation returned; nothing may be thrown through a C interface.
template <class Operation>
const char* said(Operation operation) {
  try {
    return operation();
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
}

constexpr const char* kNoSuchEncoder = "no encoder of that name runs on this processor";

}  // namespace
}  // namespace endor

extern "C" {

const char* endor_instruction_sets() { return endor::instruction_set_names(); }

const char* endor_expand(const EndorMatrix* described, const char* instruction_set, int32_t widen, void* out) {
  const endor::RowKernels* kernels = endor::row_kernels(instruction_set);
  if (kernels == nullptr) return endor::kNoSuchSet;
  return endor::said([&] {
    return endor::expand(endor::matrix_of(described), *kernels, endor::only_this_thread(), widen != 0, out);
  });
}

const char* endor_multiply(const EndorMatrix* described, const char* instruction_set, int32_t x_number,
                           int64_t x_count, const void* x, int32_t out_number, void* out) {
  const endor::RowKernels* kernels = endor::row_kernels(instruction_set);
  if (kernels == nullptr) return endor::kNoSuchSet;
  return endor::said([&] {
    return endor::multiply(endor::matrix_of(described), *kernels, endor::only_this_thread(),
                           {static_cast<endor::Number>(x_number), x_count, x},
                           {static_cast<endor::Number>(out_number), out});
  });
}

const char* endor_count_fields(const EndorDense* described, const char* instruction_set, uint8_t* bases,
                               int64_t* fields, EndorCounts* counts) {
  const endor::EncodeKernels* kernels = endor::encode_kernels(instruction_set);
  if (kernels == nullptr) return endor::kNoSuchEncoder;
  const endor::EncodedCounts counted = kernels->count(endor::dense_matrix_of(described), bases, fields);
  *counts = {counted.fields, counted.escapes, counted.nonzero};
  return nullptr;
}

const char* endor_write_fields(const EndorDense* described, const char* instruction_set,
                               const EndorPieces* pieces) {
  const endor::EncodeKernels* kernels = endor::encode_kernels(instruction_set);
  if (kernels == nullptr) return endor::kNoSuchEncoder;
  const bool filled = kernels->write(
      endor::dense_matrix_of(described),
      {pieces->bases, pieces->bitmap, reinterpret_cast<uint8_t*>(pieces->stream), 4 * pieces->stream_words,
       pieces->escape_index, static_cast<uint8_t*>(pieces->escape_bits), pieces->escapes});
  return filled ? nullptr : "the elements are not those that were counted";
}
}
