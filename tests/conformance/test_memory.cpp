// What levels do with memory: nothing read before it is written, nothing touched outside of a
// tensor, no allocation in forward from level 3 on.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <tuple>

#include "conformance/levels_under_test.h"
#include "core/isa.h"
#include "core/level.h"
#include "core/workload.h"
#include "moe/verify.h"

// Counts what C++ code of this process asks operator new for. GCC's default operators call malloc, so
// replacing these leaves the others working. Not inlined: GCC would see free() of new's result.
namespace {
std::size_t largest_new = 0;
}  // namespace
#if !defined(__SANITIZE_ADDRESS__)  // it has operators of its own, and refuses a mixture
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  if (bytes > largest_new) largest_new = bytes;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
#endif

namespace moe {
namespace {

/// Memory whose last byte is followed, and whose first byte is preceded, by a page that faults. A
/// tensor fits flush against one of the two.
class FencedTensor {
 public:
  enum class Flush { kEnd, kBegin };
  FencedTensor(const TensorView& source, Flush flush)
      : page_(static_cast<std::size_t>(::sysconf(_SC_PAGESIZE))) {
    const std::size_t inner = round_up(source.bytes(), page_);
    size_ = inner + 2 * page_;
    base_ = static_cast<std::byte*>(
        ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    ::mprotect(base_, page_, PROT_NONE);
    ::mprotect(base_ + page_ + inner, page_, PROT_NONE);
    view_ = source;
    view_.data = base_ + page_ + (flush == Flush::kEnd ? inner - source.bytes() : 0);
    if (source.bytes() > 0) std::memcpy(view_.data, source.data, source.bytes());
  }
  FencedTensor(const FencedTensor&) = delete;
  FencedTensor& operator=(const FencedTensor&) = delete;
  ~FencedTensor() { ::munmap(base_, size_); }
  [[nodiscard]] const TensorView& view() const { return view_; }

 private:
  std::size_t page_;
  std::size_t size_ = 0;
  std::byte* base_ = nullptr;
  TensorView view_;
};

class Memory : public testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  [[nodiscard]] const LevelInfo& level() const { return find_level(std::get<0>(GetParam())); }
  [[nodiscard]] DType dtype() const { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Conformance, Memory,
                         testing::Combine(testing::ValuesIn(levels_under_test()),
                                          testing::Values(DType::kF32, DType::kBF16)),
                         [](const auto& parameter) {
                           return std::get<0>(parameter.param) + "_" +
                                  std::string(name_of(std::get<1>(parameter.param)));
                         });

TEST_P(Memory, StaysInsideItsTensors) {
  // A read or write outside faults and ends this process: a failure of this test.
  for (const Shape& shape : {Shape{5, 33, 17, 3, 2}, Shape{1, 7, 1, 2, 1}, Shape{13, 64, 48, 4, 4},
                             Shape{66, 100, 36, 5, 2}}) {
    for (const auto flush : {FencedTensor::Flush::kEnd, FencedTensor::Flush::kBegin}) {
      const Problem problem{shape, dtype()};
      const OwnedWeights weights = make_weights(problem, 31);
      const Tensor x = make_input(problem, 31, 0);
      const FencedTensor router(weights.router.view(), flush);
      const FencedTensor gate(weights.gate.view(), flush);
      const FencedTensor up(weights.up.view(), flush);
      const FencedTensor down(weights.down.view(), flush);
      const FencedTensor fenced_x(x.view(), flush);
      const FencedTensor y(x.view(), flush);
      MOE_CREATE_OR_SKIP(layer, options_of(level().name, problem),
                         (Weights{router.view(), gate.view(), up.view(), down.view()}));
      poison(y.view());
      layer.forward(fenced_x.view(), y.view());
      const Comparison comparison = Oracle(problem, weights.view(), x.view()).compare(y.view());
      EXPECT_TRUE(comparison.passed) << to_string(shape) << ": " << comparison.describe();
    }
  }
}

TEST_P(Memory, WorkspaceIsWrittenBeforeItIsReadAndLargeEnough) {
  // The level gets an arena of exactly the bytes that it asked for, full of NaN (and -1 as integers),
  // ending at a page that faults.
  const LevelFactory factory = level_factory(level(), Backend::kCpu);
  if (factory == nullptr) GTEST_SKIP() << "not in this build";
  const ExecutionOptions execution{.threads = 2,
                                   .isa = std::string(name_of(best_isa())),
                                   .tune_seconds = 0,
                                   .tune_cache = "off"};
  for (const Shape& shape :
       {Shape{21, 40, 56, 6, 2}, Shape{3, 33, 17, 9, 4}, Shape{130, 64, 32, 4, 1}}) {
    const Problem problem{shape, dtype()};
    const OwnedWeights weights = make_weights(problem, 32);
    const std::unique_ptr<Level> level_object = factory();
    if (const std::string reason = level_object->unsupported(problem, execution); !reason.empty())
      GTEST_SKIP() << reason;
    const auto bytes =
        static_cast<std::int64_t>(level_object->memory(problem, execution).workspace);
    level_object->prepare(problem, weights.view(), execution);
    ASSERT_EQ(bytes % static_cast<std::int64_t>(kArenaAlignment), 0);
    Tensor ones(DType::kF32, {bytes / 4});
    if (bytes > 0) std::memset(ones.view().data, 0xFF, ones.view().bytes());
    const FencedTensor arena(ones.view(), FencedTensor::Flush::kEnd);

    const Tensor y(dtype(), {shape.tokens, shape.hidden});
    for (const std::uint64_t variant : {0U, 1U}) {
      const Tensor x = make_input(problem, 32, variant);
      if (bytes > 0) std::memset(arena.view().data, 0xFF, static_cast<std::size_t>(bytes));
      Context context{.arena = Arena(arena.view().data, static_cast<std::size_t>(bytes))};
      poison(y.view());
      level_object->forward(context, x.view(), y.view());
      const Comparison comparison = Oracle(problem, weights.view(), x.view()).compare(y.view());
      EXPECT_TRUE(comparison.passed) << to_string(shape) << ": " << comparison.describe();
    }
  }
}

TEST_P(Memory, NoAllocationInForwardFromLevel3On) {
  if (level().number < 3)
    GTEST_SKIP() << "level " << level().name << " allocates in forward: its lesson";
  const Problem problem{
      {.tokens = 128, .hidden = 256, .intermediate = 192, .experts = 8, .top_k = 2}, dtype()};
  const OwnedWeights weights = make_weights(problem, 33);
  MOE_CREATE_OR_SKIP(layer, options_of(level().name, problem), weights.view());
  EXPECT_EQ(layer->memory().transient, 0U);
  const Tensor y(dtype(), {128, 256});
  const Tensor first = make_input(problem, 33, 0);
  const Tensor second = make_input(problem, 33, 1);
  layer.forward(first.view(), y.view());
  const std::uint64_t before = allocation_count();
  largest_new = 0;
  layer.forward(second.view(), y.view());  // other routing than the first
  const std::size_t largest = largest_new;
  EXPECT_EQ(allocation_count(), before);
  // Libraries may allocate argument lists; no tensor of this problem is below 32 KiB.
  EXPECT_LT(largest, 8192U) << "bytes asked of operator new at once";
}

TEST_P(Memory, PredictionEqualsTheLayer) {
  const Problem problem{{.tokens = 50, .hidden = 64, .intermediate = 72, .experts = 8, .top_k = 3},
                        dtype()};
  const OwnedWeights weights = make_weights(problem, 34);
  const LayerOptions options = options_of(level().name, problem);
  MOE_CREATE_OR_SKIP(layer, options, weights.view());
  const MemoryNeeds predicted = Layer::predict(options);
  EXPECT_EQ(predicted.workspace, layer->workspace_bytes());
  EXPECT_EQ(predicted.total(), layer->memory().total());
  if (predicted.total() < 2) return;
  LayerOptions limited = options;
  limited.workspace_limit = predicted.total() - 1;
  try {
    (void)Layer::create(limited, weights.view());
    FAIL() << "created with one byte less than it needs";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_EQ(error.bytes_needed(), predicted.total());
  }
}

TEST_P(Memory, ResidentMemoryStaysWithinThePrediction) {
  // Large enough that pages of stacks and libraries do not count; levels that gather weights per
  // routed row, and the one that is a single thread of plain loops, get there with fewer tokens.
  const std::int64_t tokens = level().number < 3 ? 64 : 2048;
  const Problem problem{
      {.tokens = tokens, .hidden = 768, .intermediate = 512, .experts = 4, .top_k = 2}, dtype()};
  const LayerOptions options = options_of(level().name, problem);
  const OwnedWeights weights = make_weights(problem, 35);
  MOE_CREATE_OR_SKIP(layer, options, weights.view());
  const Tensor x = make_input(problem, 35, 0);
  const Tensor y(dtype(), {tokens, 768});
  layer.forward(x.view(),
                y.view());  // threads, lazily bound libraries and y are resident from here on
  layer->release_workspace_pages();
  reset_peak_resident();
  const std::uint64_t before = resident_bytes();
  if (before == 0) GTEST_SKIP() << "/proc does not tell resident memory";
  layer.forward(x.view(), y.view());
  const std::uint64_t peak = peak_resident_bytes();
  const std::uint64_t used = peak > before ? peak - before : 0;
  const double predicted =
      static_cast<double>(layer->memory().workspace + layer->memory().transient);
  constexpr double kNoise = 2 << 20;
  EXPECT_LE(static_cast<double>(used), 1.1 * predicted + kNoise) << "predicted " << predicted;
  EXPECT_GE(static_cast<double>(used), 0.9 * predicted - kNoise) << "predicted " << predicted;
}

}  // namespace
}  // namespace moe
