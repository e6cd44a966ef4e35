// Expand and multiply a whole matrix: its parts, its rows shared out among threads.
#ifndef ENDOR_JAX_KERNELS_NATIVE_OPERATIONS_H_
#define ENDOR_JAX_KERNELS_NATIVE_OPERATIONS_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "matrix.h"
#include "row_kernels.h"

namespace endor {

struct Part {
  const uint32_t* words;
  int64_t count;
};

// A matrix of `rows` rows, of which each part holds `layout.rows`; rows of the last one may be padding.
struct Matrix {
  Layout layout;
  int64_t rows;
  std::vector<Part> parts;
};

// Vectors as rows of a dense row-major array.
struct Vectors {
  Number number;
  int64_t count;
  const void* data;
};

struct MutableVectors {
  Number number;
  void* data;
};

// Who shares the work: `run(threads, count, task)` calls task(0), ..., task(count − 1), on `threads` of at most
// `most` threads at a time, and returns when all have returned. A task does not throw.
struct Workers {
  int64_t most;
  std::function<void(int64_t threads, int64_t count, const std::function<void(int64_t)>& task)> run;
};

Workers only_this_thread();

// Both throw std::bad_alloc.
//
// All rows to `out`, row-major: element bits, or float32 if `widen`. Null, or what is wrong with a part.
const char* expand(const Matrix& matrix, const RowKernels& kernels, const Workers& workers, bool widen,
                   void* out);

// out[i, r] = Σ_c x[i, c] · matrix[r, c], summed in float32, rounded once to the format of `out`. Subnormal
// products may count as zero. Null, or what is wrong with a part.
const char* multiply(const Matrix& matrix, const RowKernels& kernels, const Workers& workers, const Vectors& x,
                     const MutableVectors& out);

}  // namespace endor

#endif  // ENDOR_JAX_KERNELS_NATIVE_OPERATIONS_H_
