// ENDOR_INLINED: for functions in headers that are compiled into several instruction sets.
//
// The compiler writes an ordinary inline function into every object that calls it and the linker keeps one of
// them: if that is the one from isa_avx512.cc, a lesser processor meets instructions it does not have. What is
// always inlined is written nowhere; for the same reason these headers use no algorithms of the standard
// library. tests/kernels/native/test_build.py looks for such functions in the objects.
#ifndef ENDOR_JAX_KERNELS_NATIVE_INLINED_H_
#define ENDOR_JAX_KERNELS_NATIVE_INLINED_H_

#include <cstdint>

#define ENDOR_INLINED inline __attribute__((always_inline))

namespace endor {

template <class T>
ENDOR_INLINED T smaller(T a, T b) {
  return b < a ? b : a;
}

// The first of `count` ascending numbers that is not below `value`; of unsorted ones, any.
ENDOR_INLINED const uint32_t* first_not_below(const uint32_t* numbers, int64_t count, uint64_t value) {
  while (count > 0) {
    const int64_t half = count / 2;
    const bool below = numbers[half] < value;
    numbers += below ? half + 1 : 0;
    count = below ? count - half - 1 : half;
  }
  return numbers;
}

}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_INLINED_H_
