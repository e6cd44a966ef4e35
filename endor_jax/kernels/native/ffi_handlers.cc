// XLA's custom calls on CPU: endor_expand and endor_linear, registered by endor_jax/kernels/custom_call.py.
//
// The rows of a matrix are shared out among the threads of XLA's own pool. The thread that runs the call takes
// rows like the others and never waits for one that has not begun: a call cannot deadlock, however few there are.

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <string_view>
#include <thread>

#include "c_api.h"
#include "instruction_sets.h"
#include "operations.h"
#include "xla/ffi/api/ffi.h"

namespace endor {
namespace {

namespace ffi = xla::ffi;

// What the threads of one call share; the last to let go of it frees it.
struct Shared {
  std::function<void(int64_t)> task;
  int64_t count;
  std::atomic<int64_t> next{0}, done{0};

  void work() {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      task(i);
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

constexpr int kSpins = 1000;

Workers workers_of(ffi::ThreadPool& pool) {
  const int64_t most = std::max<int64_t>(1, pool.num_threads());
  return {most, [&pool](int64_t threads, int64_t count, const std::function<void(int64_t)>& task) {
            auto shared = std::make_shared<Shared>();
            shared->task = task;
            shared->count = count;
            for (int64_t i = 1; i < std::min(threads, count); ++i) {
              pool.Schedule([shared] { shared->work(); });
            }
            shared->work();
            // All tasks have been taken; those of other threads end soon.
            for (int spins = 0; shared->done.load(std::memory_order_acquire) < count;) {
              if (spins < kSpins) {
                ++spins;
              } else {
                std::this_thread::yield();
              }
            }
          }};
}

std::optional<Number> number_of(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::BF16:
      return Number::kBFloat16;
    case ffi::DataType::F16:
      return Number::kFloat16;
    case ffi::DataType::F32:
      return Number::kFloat32;
    default:
      return std::nullopt;
  }
}

ffi::Error invalid(const char* what) { return ffi::Error::InvalidArgument(what); }

// What an operation returned or threw, in XLA's words: nothing may be thrown through its C interface.
template <class Operation>
ffi::Error said(Operation operation) {
  try {
    const char* wrong = operation();
    return wrong ? invalid(wrong) : ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory");
  }
}

// The attributes of a call: those of `FieldLayout`, the rows of the whole matrix, how many of the call's
// arguments are parts, and the instruction set asked for ("": the best).
struct Attributes {
  int64_t number, field_bits, rows, columns, header, bitmap, offsets, bases, scales, escape_capacity, matrix_rows;
  int64_t parts;
  std::string_view instruction_set;

  Layout layout() const {
    return {static_cast<Number>(number), static_cast<int32_t>(field_bits), rows,  columns,        header, bitmap,
            offsets,                     bases,                            scales, escape_capacity};
  }
};

// The matrix whose parts are the arguments from number `first` on.
std::optional<Matrix> matrix_of(const Attributes& attributes, ffi::RemainingArgs& arguments) {
  Matrix matrix{attributes.layout(), attributes.matrix_rows, {}};
  for (int64_t i = 0; i < attributes.parts; ++i) {
    const auto words = arguments.get<ffi::Buffer<ffi::DataType::U32, 1>>(i);
    if (words.has_error()) return std::nullopt;
    matrix.parts.push_back({words->typed_data(), static_cast<int64_t>(words->element_count())});
  }
  return matrix;
}

constexpr const char* kNoParts = "the parts must be vectors of uint32";

ffi::Error expand_call(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::Result<ffi::AnyBuffer> out,
                       Attributes attributes) {
  const RowKernels* kernels = row_kernels(attributes.instruction_set);
  if (kernels == nullptr) return invalid(kNoSuchSet);
  const auto matrix = matrix_of(attributes, arguments);
  if (!matrix) return invalid(kNoParts);
  const auto number = number_of(out->element_type());
  const int64_t elements = matrix->rows * matrix->layout.columns;
  if (!number || static_cast<int64_t>(out->element_count()) != elements) return invalid("not the matrix's shape");
  const bool widen = *number != matrix->layout.number;
  if (widen && *number != Number::kFloat32) return invalid("only float32 is wider");
  return said([&] { return expand(*matrix, *kernels, workers_of(pool), widen, out->untyped_data()); });
}

ffi::Error linear_call(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::RemainingArgs arguments,
                       ffi::Result<ffi::AnyBuffer> out, Attributes attributes) {
  const RowKernels* kernels = row_kernels(attributes.instruction_set);
  if (kernels == nullptr) return invalid(kNoSuchSet);
  const auto matrix = matrix_of(attributes, arguments);
  if (!matrix) return invalid(kNoParts);
  const auto from = number_of(x.element_type()), to = number_of(out->element_type());
  if (!from || !to) return invalid("x and the result must be bfloat16, float16 or float32");
  const int64_t columns = matrix->layout.columns, elements = static_cast<int64_t>(x.element_count());
  const int64_t count = columns > 0 ? elements / columns : 0;
  if (count * columns != elements || count * matrix->rows != static_cast<int64_t>(out->element_count())) {
    return invalid("shapes of x, matrix and result do not fit");
  }
  return said([&] {
    return multiply(*matrix, *kernels, workers_of(pool), {*from, count, x.untyped_data()},
                    {*to, out->untyped_data()});
  });
}

}  // namespace
}  // namespace endor

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    endor::Attributes, xla::ffi::StructMember<int64_t>("number"), xla::ffi::StructMember<int64_t>("field_bits"),
    xla::ffi::StructMember<int64_t>("rows"), xla::ffi::StructMember<int64_t>("columns"),
    xla::ffi::StructMember<int64_t>("header"), xla::ffi::StructMember<int64_t>("bitmap"),
    xla::ffi::StructMember<int64_t>("offsets"), xla::ffi::StructMember<int64_t>("bases"),
    xla::ffi::StructMember<int64_t>("scales"), xla::ffi::StructMember<int64_t>("escape_capacity"),
    xla::ffi::StructMember<int64_t>("matrix_rows"), xla::ffi::StructMember<int64_t>("parts"),
    xla::ffi::StructMember<std::string_view>("instruction_set"));

extern "C" {
ENDOR_EXPORT XLA_FFI_Error* endor_expand_handler(XLA_FFI_CallFrame*);
ENDOR_EXPORT XLA_FFI_Error* endor_linear_handler(XLA_FFI_CallFrame*);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(endor_expand_handler, endor::expand_call,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attrs<endor::Attributes>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(endor_linear_handler, endor::linear_call,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attrs<endor::Attributes>());
