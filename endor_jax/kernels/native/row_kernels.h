// What an instruction set provides: expanding some rows of a part, and multiplying them with inputs.
#ifndef ENDOR_JAX_KERNELS_NATIVE_ROW_KERNELS_H_
#define ENDOR_JAX_KERNELS_NATIVE_ROW_KERNELS_H_

#include <cstdint>

#include "inlined.h"
#include "matrix.h"

namespace endor {

// In which order an instruction set wants 32 columns of an input.
enum class InputFormat {
  kFloat32,         // as they come
  kFloat32EvenOdd,  // the 16 even ones, then the 16 odd ones
  kBFloat16,        // as they come; products of bfloat16 pairs are summed in float32 by one instruction
};

ENDOR_INLINED constexpr int input_bytes(InputFormat format) { return format == InputFormat::kBFloat16 ? 2 : 4; }

// The largest number of inputs that one pass over a weight row is multiplied with.
constexpr int kMostInputs = 16;

// How many inputs a pass is compiled for: the next power of two.
ENDOR_INLINED constexpr int places_for(int64_t inputs) {
  return inputs <= 1 ? 1 : inputs <= 2 ? 2 : inputs <= 4 ? 4 : inputs <= 8 ? 8 : kMostInputs;
}

// The inputs of a product: of the first 32 columns one input after another, then of the next 32, and so on. A
// pass reads them in this order, with one pointer for all. There are places_for(count) of them and columns to a
// multiple of 32; what is not there is zero. Aligned to 64 bytes.
struct Inputs {
  InputFormat format;
  const uint8_t* data;
  int64_t count;
};

// Where input i of `places` has a column.
template <InputFormat kFormat, int places>
ENDOR_INLINED const uint8_t* input_at(const uint8_t* data, int i, int64_t column) {
  return data + ((column / 32 * places + i) * 32 + column % 32) * input_bytes(kFormat);
}

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
