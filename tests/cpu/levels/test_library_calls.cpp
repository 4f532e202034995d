// Counts what a forward of the library levels asks of oneDNN and of the allocator, by defining those
// functions in the test executable and passing every call on. Allocations inside a library call are
// counted apart from ours, on whichever thread: the library's parallel loops run on OpenMP's threads,
// and nothing of ours runs while it works.
#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "core/isa.h"
#include "library_level_checks.h"

// Sanitizers replace the allocator themselves.
#if MOE_HAVE_ONEDNN && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)

#include <dlfcn.h>
#include <dnnl.h>

#include <cerrno>

namespace {

std::atomic<bool> counting{false};
std::atomic<std::int64_t> own_allocations{0};
std::atomic<std::int64_t> library_allocations{0};
std::atomic<std::int64_t> library_bytes{0};
std::atomic<std::int64_t> executions{0};
std::atomic<std::int64_t> creations{0};
std::atomic<int> library_depth{0};

void count_allocation(std::size_t bytes) {
  if (!counting.load(std::memory_order_relaxed)) return;
  if (library_depth.load(std::memory_order_relaxed) > 0) {
    library_allocations.fetch_add(1, std::memory_order_relaxed);
    library_bytes.fetch_add(static_cast<std::int64_t>(bytes), std::memory_order_relaxed);
  } else {
    own_allocations.fetch_add(1, std::memory_order_relaxed);
  }
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

/// A library call in progress.
struct InLibrary {
  explicit InLibrary(std::atomic<std::int64_t>& counter) {
    ++library_depth;
    if (counting.load(std::memory_order_relaxed)) counter.fetch_add(1, std::memory_order_relaxed);
  }
  ~InLibrary() { --library_depth; }
};

}  // namespace

extern "C" {

// glibc's own entry points: what malloc and the others pass calls on to.
// NOLINTBEGIN(bugprone-reserved-identifier)
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
// NOLINTEND(bugprone-reserved-identifier)

__attribute__((visibility("default"))) void* malloc(std::size_t bytes) {
  count_allocation(bytes);
  return __libc_malloc(bytes);
}
__attribute__((visibility("default"))) void* calloc(std::size_t count, std::size_t bytes) {
  count_allocation(count * bytes);
  return __libc_calloc(count, bytes);
}
__attribute__((visibility("default"))) void* realloc(void* block, std::size_t bytes) {
  count_allocation(bytes);
  return __libc_realloc(block, bytes);
}
__attribute__((visibility("default"))) void* memalign(std::size_t alignment, std::size_t bytes) {
  count_allocation(bytes);
  return __libc_memalign(alignment, bytes);
}
__attribute__((visibility("default"))) void* aligned_alloc(std::size_t alignment,
                                                           std::size_t bytes) {
  count_allocation(bytes);
  return __libc_memalign(alignment, bytes);
}
__attribute__((visibility("default"))) int posix_memalign(void** block, std::size_t alignment,
                                                          std::size_t bytes) {
  count_allocation(bytes);
  *block = __libc_memalign(alignment, bytes);
  return *block == nullptr ? ENOMEM : 0;
}

__attribute__((visibility("default"))) dnnl_status_t dnnl_primitive_execute(
    const_dnnl_primitive_t primitive, dnnl_stream_t stream, int nargs,
    const dnnl_exec_arg_t* args) {
  static const auto real = next<decltype(&dnnl_primitive_execute)>("dnnl_primitive_execute");
  const InLibrary scope(executions);
  return real(primitive, stream, nargs, args);
}
__attribute__((visibility("default"))) dnnl_status_t dnnl_memory_set_data_handle(
    dnnl_memory_t memory, void* handle) {
  static const auto real =
      next<decltype(&dnnl_memory_set_data_handle)>("dnnl_memory_set_data_handle");
  static std::atomic<std::int64_t> calls{0};
  const InLibrary scope(calls);
  return real(memory, handle);
}
__attribute__((visibility("default"))) dnnl_status_t dnnl_primitive_desc_create(
    dnnl_primitive_desc_t* desc, const_dnnl_op_desc_t op, const_dnnl_primitive_attr_t attr,
    dnnl_engine_t engine, const_dnnl_primitive_desc_t hint) {
  static const auto real =
      next<decltype(&dnnl_primitive_desc_create)>("dnnl_primitive_desc_create");
  const InLibrary scope(creations);
  return real(desc, op, attr, engine, hint);
}
__attribute__((visibility("default"))) dnnl_status_t dnnl_primitive_create(
    dnnl_primitive_t* primitive, const_dnnl_primitive_desc_t desc) {
  static const auto real = next<decltype(&dnnl_primitive_create)>("dnnl_primitive_create");
  const InLibrary scope(creations);
  return real(primitive, desc);
}
__attribute__((visibility("default"))) dnnl_status_t dnnl_memory_create(
    dnnl_memory_t* memory, const dnnl_memory_desc_t* desc, dnnl_engine_t engine, void* handle) {
  static const auto real = next<decltype(&dnnl_memory_create)>("dnnl_memory_create");
  const InLibrary scope(creations);
  return real(memory, desc, engine, handle);
}

}  // extern "C"

namespace moe {
namespace {

struct Counts {
  std::int64_t own = 0, library = 0, bytes = 0, executions = 0, creations = 0;
};

Counts count_forward(Layer& layer, const TensorView& x, const TensorView& y) {
  own_allocations = library_allocations = library_bytes = executions = creations = 0;
  counting = true;
  layer.forward(x, y);
  counting = false;
  return {own_allocations, library_allocations, library_bytes, executions, creations};
}

struct CountedLayer {
  explicit CountedLayer(const std::string& level, DType dtype,
                        const Shape& shape = {64, 96, 200, 8, 2})
      : problem{shape, dtype},
        weights(make_weights(problem, 4)),
        layer(Layer::create(library_level(level, problem, 2), weights.view())) {}

  Counts count(std::uint64_t variant, std::int64_t tokens) {
    const Tensor x = make_input(problem, 4, variant);
    const Tensor y(problem.dtype, {tokens, problem.shape.hidden});
    return count_forward(layer, x.view().first_rows(tokens), y.view());
  }

  Problem problem;
  OwnedWeights weights;
  Layer layer;
};

class LibraryCalls : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    const std::string reason = why_unsupported("graphs", GetParam());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};
INSTANTIATE_TEST_SUITE_P(DTypes, LibraryCalls, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(LibraryCalls, TheCountersCount) {
  own_allocations = 0;
  counting = true;
  const std::string long_enough(1000, 'x');
  counting = false;
  EXPECT_GE(own_allocations, 1);
  EXPECT_EQ(long_enough.size(), 1000U);
}

// Whatever the routing, from the second forward on (the first starts OpenMP's threads).
TEST_P(LibraryCalls, GraphsReplaysWithoutCreatingOrAllocating) {
  CountedLayer counted("graphs", GetParam());
  (void)counted.count(0, 64);
  for (std::uint64_t variant = 1; variant < 6; ++variant) {
    for (const std::int64_t tokens : {64, 63, 17, 4, 1}) {
      const Counts counts = counted.count(variant, tokens);
      EXPECT_EQ(counts.creations, 0) << tokens << " tokens, input " << variant;
      EXPECT_EQ(counts.own, 0) << tokens << " tokens, input " << variant;
      EXPECT_GT(counts.executions, 0);
      RecordProperty("library_allocations_per_gemm",
                     static_cast<int>(counts.library / counts.executions));
      // oneDNN 2.6 builds a map of the arguments and an execution context in every call: a few
      // small blocks, named in docs/levels/level05_graphs.md.
      EXPECT_LE(counts.library, 16 * counts.executions);
      // Without AVX-512 its product is a gemm that packs its operands into a buffer of its own in
      // every call.
      const std::int64_t packing = best_isa() < Isa::kAvx512f ? 32 << 10 : 0;
      EXPECT_LE(counts.bytes, (2048 + packing) * counts.executions);
    }
  }
}

TEST_P(LibraryCalls, GroupedCreatesPrimitivesInForwardUntilItHasSeenTheRowCounts) {
  CountedLayer counted("grouped", GetParam());
  EXPECT_GT(counted.count(0, 64).creations, 0);
  EXPECT_EQ(counted.count(0, 64).creations, 0) << "the same routing again";
  EXPECT_EQ(counted.count(0, 64).own, 0);
  std::int64_t later = 0;
  for (std::uint64_t variant = 1; variant < 6; ++variant)
    later += counted.count(variant, 64).creations;
  EXPECT_GT(later, 0) << "five other routings brought no new row count";
}

}  // namespace
}  // namespace moe

#endif
