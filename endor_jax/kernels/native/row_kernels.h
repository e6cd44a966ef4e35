// What an instruction set provides: expanding some rows of a part, and multiplying them with inputs.
#ifndef ENDOR_JAX_KERNELS_NATIVE_ROW_KERNELS_H_
#define ENDOR_JAX_KERNELS_NATIVE_ROW_KERNELS_H_

#include <cstdint>

#include "matrix.h"

namespace endor {

// How the inputs of a product lie in memory, as the instruction set wants them. Rows are padded with zeros to
// a multiple of 32 columns and start at multiples of 64 bytes.
enum class InputFormat {
  kFloat32,         // in order
  kFloat32EvenOdd,  // of every 32 columns the 16 even ones, then the 16 odd ones
  kBFloat16,        // in order; products of bfloat16 pairs are summed in float32 by one instruction
};

struct Inputs {
  InputFormat format;
  const uint8_t* data;
  int64_t row_bytes;
  int64_t count;
};

// The largest number of input rows that one pass over a weight row is multiplied with.
constexpr int kMostInputs = 16;

struct RowKernels {
  const char* name;
  // Whether this processor has the instructions.
  bool (*supported)();
  // The format it wants the inputs in, given the formats of weights and inputs.
  InputFormat (*input_format)(Number weights, Number inputs);
  // Rows first, ..., last − 1 of the part to `out`, row after row: element bits, or float32 if `widen`.
  // streaming: write past the caches, because the result is larger than they are.
  void (*expand)(const PartView& part, int64_t first, int64_t last, uint8_t* out, bool widen, bool streaming);
  // sums[(row − first) · inputs.count + i] = row · input i, summed in float32; inputs.count ≤ kMostInputs.
  void (*multiply)(const PartView& part, int64_t first, int64_t last, const Inputs& inputs, float* sums);
};

extern const RowKernels kScalar;
#if defined(__x86_64__)
extern const RowKernels kAvx2;
extern const RowKernels kAvx512;
#elif defined(__aarch64__)
extern const RowKernels kNeon;
#endif

}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_ROW_KERNELS_H_
