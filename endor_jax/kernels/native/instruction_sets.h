// Which instruction sets there are, and which of them this processor has: decided when a kernel runs.
#ifndef ENDOR_JAX_KERNELS_NATIVE_INSTRUCTION_SETS_H_
#define ENDOR_JAX_KERNELS_NATIVE_INSTRUCTION_SETS_H_

#include <string_view>

#include "row_kernels.h"

namespace endor {

// The kernels called `name`, or the best of those the processor has if it is empty. Null if there are none of
// that name here, or the processor lacks the instructions.
const RowKernels* row_kernels(std::string_view name);

// What is said where that is null.
inline constexpr const char* kNoSuchSet = "this processor has no instruction set of that name";

// Names of all instruction sets that this processor has, best first, separated by spaces.
const char* instruction_set_names();

}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_INSTRUCTION_SETS_H_
