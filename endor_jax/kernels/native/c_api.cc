// Plain C entry points: what Python calls through ctypes, and what the test driver links with.

#include "c_api.h"

#include "instruction_sets.h"
#include "operations.h"

namespace endor {
namespace {

Matrix matrix_of(const EndorMatrix* described) {
  Matrix matrix{{static_cast<Number>(described->number), described->field_bits, described->rows,
                 described->columns, described->header, described->bitmap, described->offsets, described->bases,
                 described->escape_capacity},
                described->matrix_rows,
                {}};
  for (int64_t i = 0; i < described->parts; ++i) {
    matrix.parts.push_back({described->words[i], described->counts[i]});
  }
  return matrix;
}

constexpr const char* kNoSuchSet = "this processor has no instruction set of that name";

}  // namespace
}  // namespace endor

extern "C" {

const char* endor_instruction_sets() { return endor::instruction_set_names(); }

const char* endor_expand(const EndorMatrix* described, const char* instruction_set, int32_t widen, void* out) {
  const endor::RowKernels* kernels = endor::row_kernels(instruction_set);
  if (kernels == nullptr) return endor::kNoSuchSet;
  return endor::expand(endor::matrix_of(described), *kernels, endor::only_this_thread(), widen != 0, out);
}

const char* endor_multiply(const EndorMatrix* described, const char* instruction_set, int32_t x_number,
                           int64_t x_count, const void* x, int32_t out_number, void* out) {
  const endor::RowKernels* kernels = endor::row_kernels(instruction_set);
  if (kernels == nullptr) return endor::kNoSuchSet;
  return endor::multiply(endor::matrix_of(described), *kernels, endor::only_this_thread(),
                         {static_cast<endor::Number>(x_number), x_count, x},
                         {static_cast<endor::Number>(out_number), out});
}
}
