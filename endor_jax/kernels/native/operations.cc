// Sharing rows out among threads, bringing inputs into the format the instruction set wants.

#include "operations.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "floats.h"

namespace endor {
namespace {

// What one thread does before another has woken up, in elements that are expanded or multiplied with one input:
// with less than that for each, more threads take longer.
constexpr int64_t kThreadElements = 1 << 17;
// Tasks per thread: more of them even out threads of different speed.
constexpr int64_t kTasksPerThread = 8;
// Results above this size are written past the caches, which could not hold them anyway.
constexpr int64_t kStreamingBytes = 8 << 20;
constexpr int64_t kAlignment = 64;

const char* problem(const Matrix& matrix) {
  for (const Part& part : matrix.parts) {
    if (const char* wrong = PartView::problem(matrix.layout, part.count)) return wrong;
  }
  const int64_t held = static_cast<int64_t>(matrix.parts.size()) * matrix.layout.rows;
  return matrix.rows <= held ? nullptr : "the parts hold fewer rows than the matrix has";
}

// Some rows of one part.
struct Block {
  int64_t part, first, last;
};

// As many threads as are worth waking, for elements that are each multiplied with some inputs.
int64_t threads_for(const Matrix& matrix, const Workers& workers, int64_t inputs) {
  const int64_t worth = matrix.rows * matrix.layout.columns * inputs / kThreadElements;
  return std::clamp<int64_t>(worth, 1, workers.most);
}

// The rows cut into tasks.
std::vector<Block> blocks_of(const Matrix& matrix, int64_t threads) {
  const Layout& layout = matrix.layout;
  const int64_t tasks = threads == 1 ? 1 : threads * kTasksPerThread;
  const int64_t step = (matrix.rows + tasks - 1) / tasks;
  std::vector<Block> blocks;
  for (int64_t part = 0; part < static_cast<int64_t>(matrix.parts.size()); ++part) {
    const int64_t rows = std::min(layout.rows, matrix.rows - part * layout.rows);
    for (int64_t first = 0; first < rows; first += step) {
      blocks.push_back({part, first, std::min(first + step, rows)});
    }
  }
  return blocks;
}

void run(const Workers& workers, int64_t threads, const std::vector<Block>& blocks,
         const std::function<void(const Block&)>& task) {
  if (threads == 1) {
    for (const Block& block : blocks) task(block);
  } else {
    workers.run(threads, static_cast<int64_t>(blocks.size()), [&](int64_t i) { task(blocks[i]); });
  }
}

struct Free {
  void operator()(uint8_t* memory) const { std::free(memory); }
};

// Inputs first, ..., first + count − 1 as an instruction set wants them, in their own memory.
class PreparedInputs {
 public:
  PreparedInputs(const Vectors& x, int64_t columns, InputFormat format, int64_t first, int64_t count)
      : format_(format), count_(count), places_(places_for(count)) {
    const int64_t bytes = (columns + 31) / 32 * 32 * places_ * input_bytes(format);  // a multiple of 64
    memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, bytes)));
    if (memory_ == nullptr) throw std::bad_alloc();
    std::memset(memory_.get(), 0, bytes);
    const int64_t row_bytes = columns * element_bytes(x.number);
    for (int64_t i = 0; i < count; ++i) {
      const auto* row = static_cast<const uint8_t*>(x.data) + (first + i) * row_bytes;
      for (int64_t column = 0; column < columns; column += 32) {
        uint8_t* to = memory_.get() + (column * places_ + i * 32) * input_bytes(format);
        put(to, row + column * element_bytes(x.number), x.number, std::min<int64_t>(32, columns - column));
      }
    }
  }

  Inputs inputs() const { return {format_, memory_.get(), count_}; }

 private:
  // At most 32 columns.
  void put(uint8_t* to, const uint8_t* from, Number number, int64_t columns) const {
    if (format_ == InputFormat::kBFloat16) {
      std::memcpy(to, from, 2 * columns);
      return;
    }
    auto* values = reinterpret_cast<float*>(to);
    for (int64_t c = 0; c < columns; ++c) {
      uint32_t bits = 0;
      std::memcpy(&bits, from + c * element_bytes(number), element_bytes(number));
      values[format_ == InputFormat::kFloat32EvenOdd ? c % 2 * 16 + c / 2 : c] = float_of_bits(widen(bits, number));
    }
  }

  InputFormat format_;
  int64_t count_;
  int places_;
  std::unique_ptr<uint8_t, Free> memory_;
};

void store(const MutableVectors& out, int64_t place, float value) {
  switch (out.number) {
    case Number::kBFloat16:
      static_cast<uint16_t*>(out.data)[place] = round_to_bfloat16(value);
      return;
    case Number::kFloat16:
      static_cast<uint16_t*>(out.data)[place] = round_to_float16(value);
      return;
    case Number::kFloat32:
      static_cast<float*>(out.data)[place] = value;
      return;
  }
}

}  // namespace

Workers only_this_thread() {
  return {1, [](int64_t, int64_t count, const std::function<void(int64_t)>& task) {
            for (int64_t i = 0; i < count; ++i) task(i);
          }};
}

const char* expand(const Matrix& matrix, const RowKernels& kernels, const Workers& workers, bool widen,
                   void* out) {
  if (const char* wrong = problem(matrix)) return wrong;
  const Layout& layout = matrix.layout;
  const int64_t row_bytes = layout.columns * (widen ? 4 : element_bytes(layout.number));
  const bool streaming = matrix.rows * row_bytes >= kStreamingBytes;
  const int64_t threads = threads_for(matrix, workers, 1);
  run(workers, threads, blocks_of(matrix, threads), [&](const Block& block) {
    const Part& part = matrix.parts[block.part];
    uint8_t* to = static_cast<uint8_t*>(out) + (block.part * layout.rows + block.first) * row_bytes;
    kernels.expand(PartView(layout, part.words, part.count), block.first, block.last, to, widen, streaming);
  });
  return nullptr;
}

const char* multiply(const Matrix& matrix, const RowKernels& kernels, const Workers& workers, const Vectors& x,
                     const MutableVectors& out) {
  if (const char* wrong = problem(matrix)) return wrong;
  const Layout& layout = matrix.layout;
  if (x.count == 0) return nullptr;
  const InputFormat format = kernels.input_format(layout.number, x.number);
  for (int64_t i = 0; i < x.count; i += kMostInputs) {
    const PreparedInputs prepared(x, layout.columns, format, i, std::min<int64_t>(kMostInputs, x.count - i));
    const Inputs inputs = prepared.inputs();
    std::vector<float> all_sums(matrix.rows * inputs.count);
    const int64_t threads = threads_for(matrix, workers, inputs.count);
    run(workers, threads, blocks_of(matrix, threads), [&](const Block& block) {
      const PartView part(layout, matrix.parts[block.part].words, matrix.parts[block.part].count);
      const int64_t rows = block.last - block.first, row = block.part * layout.rows + block.first;
      float* const sums = all_sums.data() + row * inputs.count;
      kernels.multiply(part, block.first, block.last, inputs, sums);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < inputs.count; ++k) {
          store(out, (i + k) * matrix.rows + row + r, sums[r * inputs.count + k]);
        }
      }
    });
  }
  return nullptr;
}

}  // namespace endor
