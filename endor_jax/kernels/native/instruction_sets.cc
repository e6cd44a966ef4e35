// The list of instruction sets, best first, and the choice among them.

#include "instruction_sets.h"

#include <string>

namespace endor {
namespace {

const RowKernels* const kAll[] = {
#if defined(__x86_64__)
    &kAvx512,
    &kAvx2,
#elif defined(__aarch64__)
    &kNeon,
#endif
    &kScalar,
};

}  // namespace

const RowKernels* row_kernels(std::string_view name) {
  for (const RowKernels* kernels : kAll) {
    if ((name.empty() || name == kernels->name) && kernels->supported()) return kernels;
  }
  return nullptr;
}

const char* instruction_set_names() {
  static const std::string names = [] {
    std::string joined;
    for (const RowKernels* kernels : kAll) {
      if (kernels->supported()) joined += (joined.empty() ? "" : " ") + std::string(kernels->name);
    }
    return joined;
  }();
  return names.c_str();
}

}  // namespace endor
