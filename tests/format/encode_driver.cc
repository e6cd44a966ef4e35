// Runs the encoders without Python, for sanitizers: the oracle's pieces, and no access outside.
//
//   encode_driver CASES
//
// CASES is what test_native_encode_memory.py writes. Every array ends where a page begins that nobody may touch:
// sanitizers do not watch the masked loads and stores of AVX-512.

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "encode.h"

namespace {

constexpr int64_t kPage = 1 << 16;  // at least as large as any system's

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "encode_driver: %s\n", what.c_str());
  std::exit(1);
}

// So many bytes, the last one before a page that cannot be accessed.
class Block {
 public:
  explicit Block(int64_t size) : size_(size), mapped_((size + kPage - 1) / kPage * kPage + kPage) {
    void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("out of memory");
    memory_ = static_cast<uint8_t*>(memory);
    if (mprotect(memory_ + mapped_ - kPage, kPage, PROT_NONE) != 0) fail("cannot protect a page");
  }
  ~Block() { munmap(memory_, mapped_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(memory_ + mapped_ - kPage - size_);
  }
  int64_t size() const { return size_; }
  bool operator==(const Block& other) const {
    return size_ == other.size_ && std::memcmp(as<uint8_t>(), other.as<uint8_t>(), size_) == 0;
  }

 private:
  int64_t size_, mapped_;
  uint8_t* memory_;
};

class File {
 public:
  explicit File(const char* path) : file_(std::fopen(path, "rb")) {
    if (file_ == nullptr) fail(std::string("cannot open ") + path);
  }
  ~File() { std::fclose(file_); }

  int64_t number() {
    int64_t value;
    read(&value, sizeof value);
    return value;
  }
  void fill(const Block& block) { read(block.as<uint8_t>(), block.size()); }

 private:
  void read(void* to, int64_t size) {
    if (std::fread(to, 1, size, file_) != static_cast<size_t>(size)) fail("the file of cases is cut off");
  }

  std::FILE* file_;
};

struct Pieces {
  Pieces(const endor::Layout& layout, const endor::EncodedCounts& counts)
      : fields(8 * layout.rows * layout.segments()),
        bases(layout.packed() ? layout.rows * layout.segments() : 0),
        bitmap(layout.has_bitmap() ? 4 * layout.rows * layout.words_per_row() : 0),
        stream((counts.fields * layout.field_bits + 31) / 32 * 4),
        escape_index(4 * counts.escapes),
        escape_bits(counts.escapes * element_bytes(layout.number)) {}

  void fill(File& file) {
    for (const Block* block : {&fields, &bases, &bitmap, &stream, &escape_index, &escape_bits}) file.fill(*block);
  }

  bool operator==(const Pieces& other) const {
    return fields == other.fields && bases == other.bases && bitmap == other.bitmap && stream == other.stream &&
           escape_index == other.escape_index && escape_bits == other.escape_bits;
  }

  Block fields, bases, bitmap, stream, escape_index, escape_bits;
};

void check(const std::string& what, const endor::EncodeKernels& kernels, const endor::DenseMatrix& matrix,
           const endor::EncodedCounts& counts, const Pieces& expected) {
  const auto write = [&](const Pieces& made, const Block& bases) {
    return kernels.write(matrix, {bases.as<uint8_t>(), made.bitmap.as<uint32_t>(), made.stream.as<uint8_t>(),
                                  made.stream.size(), made.escape_index.as<uint32_t>(),
                                  made.escape_bits.as<uint8_t>(), made.escape_index.size() / 4});
  };
  const Pieces made(matrix.layout, counts);
  const endor::EncodedCounts counted = kernels.count(matrix, made.bases.as<uint8_t>(), made.fields.as<int64_t>());
  if (counted.fields != counts.fields || counted.escapes != counts.escapes || counted.nonzero != counts.nonzero) {
    fail(what + ": other counts");
  }
  if (!write(made, made.bases)) fail(what + ": not filled");
  if (!(made == expected)) fail(what + ": other pieces");
  // As if the elements had changed since they were counted: pieces of another length are told, and stay whole.
  for (const int64_t fields : {counts.fields / 2, counts.fields + 8}) {
    const Pieces other(matrix.layout, {fields, counts.escapes, 0});
    if (other.stream.size() != made.stream.size() && write(other, made.bases)) {
      fail(what + ": a stream of another length is said to be filled");
    }
  }
  for (const int64_t escapes : {counts.escapes / 2, counts.escapes + 1}) {
    if (escapes != counts.escapes && write(Pieces(matrix.layout, {counts.fields, escapes, 0}), made.bases)) {
      fail(what + ": a list of escapes of another length is said to be filled");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) fail("usage: encode_driver CASES");
  std::vector<const endor::EncodeKernels*> encoders;
  for (const char* name : {"avx512", "scalar"}) {
    if (const endor::EncodeKernels* found = endor::encode_kernels(name)) encoders.push_back(found);
  }
  File file(argv[1]);
  const int64_t cases = file.number();
  for (int64_t i = 0; i < cases; ++i) {
    endor::Layout layout = {};
    layout.number = static_cast<endor::Number>(file.number());
    layout.field_bits = static_cast<int32_t>(file.number());
    layout.bases = file.number() != 0 ? 0 : -1;
    layout.scales = -1;
    layout.bitmap = file.number() != 0 ? 0 : -1;
    layout.rows = file.number();
    layout.columns = file.number();
    const endor::EncodedCounts counts = {file.number(), file.number(), file.number()};
    const Block elements(layout.rows * layout.columns * element_bytes(layout.number));
    file.fill(elements);
    Pieces expected(layout, counts);
    expected.fill(file);
    for (const endor::EncodeKernels* kernels : encoders) {
      check("case " + std::to_string(i) + ", " + kernels->name, *kernels, {layout, elements.as<uint8_t>()}, counts,
            expected);
    }
  }
  std::printf("%lld cases on", static_cast<long long>(cases));
  for (const endor::EncodeKernels* kernels : encoders) std::printf(" %s", kernels->name);
  std::printf("\n");
}
