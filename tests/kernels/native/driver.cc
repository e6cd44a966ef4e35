// Runs the kernels without Python and XLA, for sanitizers and emulators: right results, and no access outside.
//
//   driver CASES [DAMAGES [SEED]]
//
// CASES is what case_files.py writes. With DAMAGES every part is corrupted that many times instead; then results
// may be anything, and only what the sanitizers see counts. Every input and output lies in a block of exactly
// its size.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "c_api.h"

namespace {

enum Number { kBFloat16 = 0, kFloat16 = 1, kFloat32 = 2 };

int64_t bytes_of(int64_t number) { return number == kFloat32 ? 4 : 2; }

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "driver: %s\n", what.c_str());
  std::exit(1);
}

// Memory of exactly so many bytes, at a multiple of 64 as XLA's arrays are.
class Block {
 public:
  explicit Block(int64_t size) : size_(size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, static_cast<size_t>(size)) != 0) fail("out of memory");
    memory_.reset(static_cast<uint8_t*>(memory));
  }

  uint8_t* data() const { return memory_.get(); }
  int64_t size() const { return size_; }
  uint32_t* words() const { return reinterpret_cast<uint32_t*>(memory_.get()); }

  template <class T>
  T at(int64_t i) const {
    T value;
    std::memcpy(&value, memory_.get() + i * sizeof(T), sizeof(T));
    return value;
  }

 private:
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };
  std::unique_ptr<uint8_t, Free> memory_;
  int64_t size_;
};

struct Case {
  EndorMatrix matrix;  // without parts
  int64_t x_number, x_count;
  std::vector<Block> parts;
  Block x, elements, widened, products, bounds;
};

class File {
 public:
  explicit File(const char* path) : file_(std::fopen(path, "rb")) {
    if (file_ == nullptr) fail(std::string("cannot open ") + path);
  }
  ~File() { std::fclose(file_); }

  Block block(int64_t size) {
    Block read(size);
    if (std::fread(read.data(), 1, size, file_) != static_cast<size_t>(size)) fail("the file of cases is cut off");
    return read;
  }
  int64_t number() { return block(8).at<int64_t>(0); }

 private:
  std::FILE* file_;
};

Case read_case(File& file) {
  EndorMatrix matrix{};
  matrix.number = static_cast<int32_t>(file.number());
  matrix.field_bits = static_cast<int32_t>(file.number());
  for (int64_t* member :
       {&matrix.rows, &matrix.columns, &matrix.header, &matrix.bitmap, &matrix.offsets, &matrix.bases, &matrix.scales,
        &matrix.escape_capacity, &matrix.matrix_rows, &matrix.parts}) {
    *member = file.number();
  }
  const int64_t x_number = file.number(), x_count = file.number();
  std::vector<Block> parts;
  for (int64_t i = 0; i < matrix.parts; ++i) parts.push_back(file.block(4 * file.number()));
  const int64_t elements = matrix.matrix_rows * matrix.columns, products = x_count * matrix.matrix_rows;
  Block x = file.block(x_count * matrix.columns * bytes_of(x_number));
  Block dense = file.block(elements * bytes_of(matrix.number));
  Block widened = file.block(4 * elements);
  Block expected = file.block(8 * products);
  Block bounds = file.block(8 * products);
  return {matrix,           x_number,           x_count,             std::move(parts), std::move(x),
          std::move(dense), std::move(widened), std::move(expected), std::move(bounds)};
}

// Calls the kernels of one instruction set with the parts of a case, or damaged ones in their place.
class Kernels {
 public:
  Kernels(const Case& one, const std::vector<Block>& parts, const std::string& instruction_set)
      : case_(one), instruction_set_(instruction_set), matrix_(one.matrix) {
    for (const Block& part : parts) {
      words_.push_back(part.words());
      counts_.push_back(part.size() / 4);
    }
    matrix_.words = words_.data();
    matrix_.counts = counts_.data();
  }

  // Null, or why it was refused.
  const char* expand(bool widen, const Block& out) const {
    return endor_expand(&matrix_, instruction_set_.c_str(), widen, out.data());
  }
  const char* multiply(const Block& out) const {
    return endor_multiply(&matrix_, instruction_set_.c_str(), static_cast<int32_t>(case_.x_number), case_.x_count,
                          case_.x.data(), kFloat32, out.data());
  }

 private:
  const Case& case_;
  const std::string& instruction_set_;
  EndorMatrix matrix_;
  std::vector<const uint32_t*> words_;
  std::vector<int64_t> counts_;
};

struct Results {
  explicit Results(const Case& one)
      : elements(one.elements.size()), widened(one.widened.size()), products(one.products.size() / 2) {}
  Block elements, widened, products;
};

void check(const Case& one, const std::string& instruction_set, const std::string& where) {
  const Kernels kernels(one, one.parts, instruction_set);
  const Results got(one);
  for (const char* wrong : {kernels.expand(false, got.elements), kernels.expand(true, got.widened),
                            kernels.multiply(got.products)}) {
    if (wrong != nullptr) fail(where + ": " + wrong);
  }
  if (std::memcmp(got.elements.data(), one.elements.data(), one.elements.size()) != 0) {
    fail(where + ": expand differs from the oracle");
  }
  if (std::memcmp(got.widened.data(), one.widened.data(), one.widened.size()) != 0) {
    fail(where + ": expand, widened, differs from the oracle");
  }
  for (int64_t i = 0; i < got.products.size() / 4; ++i) {
    const double value = got.products.at<float>(i), expected = one.products.at<double>(i);
    if (!(std::abs(value - expected) <= one.bounds.at<double>(i))) {
      fail(where + ": product " + std::to_string(i) + " is " + std::to_string(value) + ", expected " +
           std::to_string(expected) + " within " + std::to_string(one.bounds.at<double>(i)));
    }
  }
}

using Random = std::mt19937_64;

int64_t below(Random& random, int64_t limit) { return static_cast<int64_t>(random() % static_cast<uint64_t>(limit)); }

// The words first, ..., last − 1 of a part.
struct Range {
  int64_t first, last;
};

// Where damage hurts: what is used as a position or a count, then anything.
std::vector<Range> targets(const EndorMatrix& matrix, const Block& part) {
  const int64_t segment = matrix.columns < 1024 ? matrix.columns : 1024, words = part.size() / 4;
  const int64_t segments = matrix.rows * ((matrix.columns + segment - 1) / segment);
  std::vector<Range> ranges = {{matrix.header, matrix.header + 1},
                               {matrix.header + 1, matrix.header + 2},
                               {matrix.offsets, matrix.offsets + segments},
                               {0, words}};
  const auto start = static_cast<int64_t>(part.at<uint32_t>(matrix.header));
  const auto listed = static_cast<int64_t>(part.at<uint32_t>(matrix.header + 1));
  if (listed > 0) ranges.push_back({start, start + listed});
  if (matrix.bitmap >= 0) {
    ranges.push_back({matrix.bitmap, matrix.bitmap + matrix.rows * ((matrix.columns + 31) / 32)});
  }
  if (matrix.scales >= 0) {
    ranges.push_back({matrix.scales, matrix.scales + (matrix.rows * ((matrix.columns + 127) / 128) + 1) / 2});
  }
  if (matrix.bases >= 0) ranges.push_back({matrix.bases, matrix.bases + (segments + 3) / 4});
  return ranges;
}

uint32_t damaged_word(Random& random, uint32_t word, int64_t words) {
  switch (below(random, 6)) {
    case 0:
      return static_cast<uint32_t>(random());
    case 1:
      return word ^ 1u << below(random, 32);
    case 2:  // about the number of words
      return static_cast<uint32_t>(words + below(random, 9) - 4);
    case 3:  // about the number of bits
      return static_cast<uint32_t>(32 * words + below(random, 2048) - 1600);
    case 4:
      return static_cast<uint32_t>(below(random, 200));
    default: {
      const uint32_t extreme[] = {0u, ~0u, 0x7fffffffu, 0x80000000u, 0xffffffe0u};
      return extreme[below(random, 5)];
    }
  }
}

// A copy of a part with one to four damages, each of one word or of a whole section; sometimes cut off.
Block damaged(const EndorMatrix& matrix, const Block& part, Random& random) {
  const int64_t words = part.size() / 4;
  const int64_t kept = below(random, 8) == 0 ? below(random, words + 1) : words;
  std::vector<uint32_t> copy(words);
  std::memcpy(copy.data(), part.data(), part.size());
  const std::vector<Range> ranges = targets(matrix, part);
  for (int64_t left = 1 + below(random, 4); left > 0; --left) {
    Range range = ranges[below(random, static_cast<int64_t>(ranges.size()))];
    if (below(random, 2) == 0) {
      range.first += below(random, range.last - range.first);
      range.last = range.first + 1;
    }
    // Each word another, or all the same: an escape list may name one element many times.
    const bool same = below(random, 2) == 0;
    const uint32_t one = damaged_word(random, copy[range.first], words);
    for (int64_t i = range.first; i < range.last; ++i) copy[i] = same ? one : damaged_word(random, copy[i], words);
  }
  Block made(4 * kept);
  if (kept > 0) std::memcpy(made.data(), copy.data(), made.size());
  return made;
}

// The number of calls that were refused, of `damages` times three on each instruction set.
int64_t damage(const Case& one, const std::vector<std::string>& instruction_sets, int64_t damages, Random& random) {
  int64_t refused = 0;
  const Results got(one);
  for (int64_t i = 0; i < damages; ++i) {
    std::vector<Block> parts;
    for (const Block& part : one.parts) parts.push_back(damaged(one.matrix, part, random));
    for (const std::string& instruction_set : instruction_sets) {
      const Kernels kernels(one, parts, instruction_set);
      refused += kernels.expand(false, got.elements) != nullptr;
      refused += kernels.expand(true, got.widened) != nullptr;
      refused += kernels.multiply(got.products) != nullptr;
    }
  }
  return refused;
}

std::vector<std::string> names_of_sets() {
  std::vector<std::string> names;
  const std::string joined = endor_instruction_sets();
  for (size_t from = 0; from < joined.size();) {
    const size_t to = std::min(joined.find(' ', from), joined.size());
    names.push_back(joined.substr(from, to - from));
    from = to + 1;
  }
  return names;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) fail("usage: driver CASES [DAMAGES [SEED]]");
  const int64_t damages = count > 2 ? std::atoll(arguments[2]) : 0;
  Random random(count > 3 ? std::strtoull(arguments[3], nullptr, 10) : 0);
  const std::vector<std::string> instruction_sets = names_of_sets();
  File file(arguments[1]);
  const int64_t cases = file.number();
  int64_t refused = 0;
  for (int64_t i = 0; i < cases; ++i) {
    const Case one = read_case(file);
    if (damages > 0) {
      refused += damage(one, instruction_sets, damages, random);
      continue;
    }
    for (const std::string& name : instruction_sets) check(one, name, "case " + std::to_string(i) + ", " + name);
  }
  std::printf("%lld cases, %lld damages each, %lld calls refused, on %s\n", static_cast<long long>(cases),
              static_cast<long long>(damages), static_cast<long long>(refused), endor_instruction_sets());
  return 0;
}
