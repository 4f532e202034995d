#include "cuda/ops/layer_kernels.h"

#include <algorithm>
#include <atomic>
#include <optional>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/element.cuh"
#include "cuda/device/permute.cuh"
#include "cuda/device/route.cuh"
#include "cuda/nvrtc.h"
#include "cuda/ops/routed_steps.h"
#include "cuda/ops/routing.h"

namespace moe::cuda {
namespace {

// --- precompiled ---------------------------------------------------------------------------------
class Precompiled final : public LayerKernels {
 public:
  Precompiled(const Problem& problem, const DeviceFacts& facts, const Weights& weights)
      : experts_(with_shared_slots(problem).experts),
        router_(problem, weights, facts),
        steps_(problem, weights),
        counted_(cudaEventDisableTiming),
        offsets_(offset_bytes()) {}

  void route(const RoutingInputs& in, const RoutedBuffers& b, std::int64_t tokens, HostReads reads,
             cudaStream_t stream) override {
    router_.route(in, tokens, b.topk_idx, b.topk_weights, b.permutation, stream);
    if (reads == HostReads::kNothing) return;
    MOE_CUDA_CHECK(cudaMemcpyAsync(offsets_.as<void>(), b.permutation.expert_offsets,
                                   offset_bytes(), cudaMemcpyDeviceToHost, stream));
    counted_.record(stream);
  }
  void permute(const TensorView& x, const RoutedBuffers& b, cudaStream_t stream) override {
    steps_.permute(x.data, x.dim(0), b, stream);
  }
  const std::int32_t* wait_for_offsets(cudaStream_t) override {
    counted_.wait();
    return offsets_.as<const std::int32_t>();
  }
  void activate(const RoutedBuffers& b, std::int64_t first, std::int64_t rows,
                cudaStream_t stream) override {
    steps_.activate(b, first, rows, stream);
  }
  void combine(const RoutedBuffers& b, const TensorView& y, cudaStream_t stream) override {
    steps_.combine(b, y.dim(0), y.data, stream);
  }
  std::string describe() const override { return "precompiled kernels"; }

 private:
  [[nodiscard]] std::size_t offset_bytes() const {
    return static_cast<std::size_t>(experts_ + 1) * sizeof(std::int32_t);
  }
  std::int64_t experts_;  // E'
  LayerRouter router_;
  RoutedSteps steps_;
  Event counted_;
  PinnedBuffer offsets_;  // [E'+1]
};

// --- specialised ---------------------------------------------------------------------------------
int tokens_per_warp(const Problem& problem, const DeviceFacts& facts) {
  return route_tokens_per_warp(problem.shape.tokens, static_cast<int>(problem.shape.experts),
                               facts.multiprocessors);
}
std::int64_t route_blocks(const Problem& problem, const DeviceFacts& facts, std::int64_t tokens) {
  const std::int64_t per_block = std::int64_t{tokens_per_warp(problem, facts)} *
                                 route_warps(static_cast<int>(problem.shape.experts));
  return (tokens + per_block - 1) / per_block;
}

NvrtcProgram program_for(const Problem& problem, const DeviceFacts& facts) {
  const Shape shape = with_shared_slots(problem);
  return {.entry = "cuda/nvrtc_kernels.cuh",
          .arch = nvrtc_arch(facts.major, facts.minor),
          .defines = {fmt::format("MOE_HIDDEN={}", shape.hidden),
                      fmt::format("MOE_INTERMEDIATE={}", shape.intermediate),
                      fmt::format("MOE_EXPERTS={}", shape.experts),
                      fmt::format("MOE_TOP_K={}", shape.top_k),
                      fmt::format("MOE_TOKENS_PER_WARP={}", tokens_per_warp(problem, facts)),
                      fmt::format("MOE_BF16={}", problem.dtype == DType::kBF16 ? 1 : 0)}};
}

/// Loaded code, with its destructor.
class KernelLibrary {
 public:
  explicit KernelLibrary(const std::string& cubin) {
    MOE_CUDA_CHECK(
        cudaLibraryLoadData(&library_, cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0));
  }
  KernelLibrary(const KernelLibrary&) = delete;
  KernelLibrary& operator=(const KernelLibrary&) = delete;
  ~KernelLibrary() { MOE_CUDA_CHECK_NOTHROW(cudaLibraryUnload(library_)); }
  [[nodiscard]] cudaKernel_t kernel(const char* name) const {
    cudaKernel_t kernel = nullptr;
    MOE_CUDA_CHECK(cudaLibraryGetKernel(&kernel, library_, name));
    return kernel;
  }

 private:
  cudaLibrary_t library_ = nullptr;
};

/// One kernel of the library; arguments must have exactly the types of its parameters.
class SpecialisedKernel {
 public:
  SpecialisedKernel(const KernelLibrary& library, const char* name)
      : name_(name), kernel_(library.kernel(name)) {}

  template <class... Arguments>
  void launch(std::int64_t blocks, int threads, cudaStream_t stream, Arguments... arguments) const {
    void* pointers[] = {&arguments...};
    // The kernels wait for their predecessor themselves (device/overlap.cuh).
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    MOE_CUDA_CHECK(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel_), pointers));
    MOE_CUDA_CHECK_LAUNCH(name_);
  }

 private:
  const char* name_;
  cudaKernel_t kernel_;
};

class Specialised final : public LayerKernels {
 public:
  Specialised(const Problem& problem, const DeviceFacts& facts, const Weights& weights,
              const CompiledProgram& program)
      : problem_(problem),
        top_k_(with_shared_slots(problem).top_k),
        facts_(facts),
        precompiled_(problem, facts, weights),
        steps_(problem, weights),
        from_(program.from),
        library_(program.cubin),
        route_(library_, "moe_route"),
        permute_narrow_(library_, "moe_permute_narrow"),
        combine_narrow_(library_, "moe_combine_narrow"),
        swiglu_(library_, "moe_swiglu"),
        finished_(kSpecialisedBytes),
        host_offsets_(static_cast<std::size_t>(problem.shape.experts + 1) * sizeof(std::int32_t)),
        host_sequence_(sizeof(unsigned)) {
    if (row_bytes() % 16 == 0) {
      permute_wide_.emplace(library_, "moe_permute_wide");
      combine_wide_.emplace(library_, "moe_combine_wide");
    }
    MOE_CUDA_CHECK(cudaMemset(finished_.data(), 0, finished_.size()));
    *host_sequence_.as<unsigned>() = 0;
  }

  void route(const RoutingInputs& in, const RoutedBuffers& b, std::int64_t tokens, HostReads reads,
             cudaStream_t stream) override {
    if (!routes()) {
      precompiled_.route(in, b, tokens, reads, stream);
      return;
    }
    const bool host = reads == HostReads::kOffsets;
    if (host) ++sequence_;
    const Placement out{.placed = b.topk_idx,
                        .topk_weights = b.topk_weights,
                        .block_rows = b.permutation.block_counts,
                        .expert_offsets = b.permutation.expert_offsets,
                        .finished = finished_.as<unsigned>(),
                        .host_offsets = host ? host_offsets_.as<std::int32_t>() : nullptr,
                        .host_sequence = host ? host_sequence_.as<unsigned>() : nullptr,
                        .sequence = sequence_};
    route_.launch(route_blocks(problem_, facts_, tokens),
                  route_warps(static_cast<int>(problem_.shape.experts)) * kWarpSize, stream,
                  in.logits, tokens, out);
  }

  void permute(const TensorView& x, const RoutedBuffers& b, cudaStream_t stream) override {
    if (!routes()) {
      precompiled_.permute(x, b, stream);
      return;
    }
    const bool wide = permute_wide_.has_value() && in_widest_vectors(0, {x.data});
    const std::int64_t unit = wide ? 16 : static_cast<std::int64_t>(size_of(problem_.dtype));
    const int segments =
        segments_per_token(x.dim(0), row_bytes() / unit, kScatterUnits * kWarpSize);
    (wide ? *permute_wide_ : permute_narrow_)
        .launch(row_blocks(x.dim(0) * segments), kRowWarps * kWarpSize, stream,
                static_cast<const void*>(x.data), x.dim(0), segments,
                static_cast<const std::int32_t*>(b.topk_idx),
                static_cast<const std::int32_t*>(b.permutation.block_counts), b.permutation.dst_row,
                static_cast<void*>(b.rows));
  }

  const std::int32_t* wait_for_offsets(cudaStream_t stream) override {
    if (!routes()) return precompiled_.wait_for_offsets(stream);
    const std::atomic_ref<unsigned> sequence(*host_sequence_.as<unsigned>());
    // Looking at the stream costs more than looking at memory: now and then is enough to learn that
    // the device failed.
    constexpr int kLooksPerQuery = 4096;
    for (int looks = 1; sequence.load(std::memory_order_acquire) != sequence_; ++looks) {
      if (looks % kLooksPerQuery != 0) continue;
      const cudaError_t status = cudaStreamQuery(stream);
      if (status == cudaErrorNotReady) continue;
      MOE_CUDA_CHECK(status);
      MOE_INTERNAL_CHECK(sequence.load(std::memory_order_acquire) == sequence_,
                         "the stream is idle, but expert_offsets of forward {} never came",
                         sequence_);
    }
    return host_offsets_.as<const std::int32_t>();
  }

  void activate(const RoutedBuffers& b, std::int64_t first, std::int64_t rows,
                cudaStream_t stream) override {
    if (!steps_.plain_activation()) {
      steps_.activate(b, first, rows, stream);
      return;
    }
    const auto element = static_cast<std::int64_t>(size_of(problem_.dtype));
    const std::int64_t width =
        problem_.shape.intermediate * element % 16 == 0 ? 16 / element : std::int64_t{1};
    const std::int64_t vectors = rows * (problem_.shape.intermediate / width);
    constexpr std::int64_t kPerBlock = std::int64_t{kSwiGluThreads} * kSwiGluUnroll;
    swiglu_.launch((vectors + kPerBlock - 1) / kPerBlock, kSwiGluThreads, stream,
                   static_cast<void*>(b.gate_up + first * steps_.gate_up_stride() * element), rows);
  }

  void combine(const RoutedBuffers& b, const TensorView& y, cudaStream_t stream) override {
    if (!steps_.plain_combine()) {
      steps_.combine(b, y.dim(0), y.data, stream);
      return;
    }
    const bool wide = combine_wide_.has_value() && in_widest_vectors(0, {y.data});
    const int slots = combine_slots(static_cast<int>(top_k_), wide);
    const std::int64_t width = wide ? 16 / static_cast<std::int64_t>(size_of(problem_.dtype)) : 1;
    const int segments = segments_per_token(y.dim(0), problem_.shape.hidden / width,
                                            std::int64_t{kCombineLoads / slots} * kWarpSize);
    (wide ? *combine_wide_ : combine_narrow_)
        .launch(row_blocks(y.dim(0) * segments), kRowWarps * kWarpSize, stream,
                static_cast<const void*>(b.rows),
                static_cast<const std::int32_t*>(b.permutation.dst_row),
                static_cast<const float*>(b.topk_weights), y.dim(0), segments, y.data);
  }

  std::string describe() const override {
    std::string text =
        fmt::format("kernels for this shape by NVRTC {}, {}", nvrtc_version(), from_);
    std::string others;
    const auto name = [&](bool compiled, const char* step) {
      if (!compiled) others += fmt::format("{}{}", others.empty() ? "" : ", ", step);
    };
    name(routes(), "routing");
    name(steps_.plain_activation(), "activation");
    name(steps_.plain_combine(), "combine");
    return others.empty() ? text : text + " (precompiled: " + others + ")";
  }

 private:
  /// Whether the compiled kernels route: theirs is the default router, every slot has a row, and topk_idx holds
  /// their own placements, so that nothing else may ask it for experts, as biases do.
  [[nodiscard]] bool routes() const {
    return problem_.router == Router{} && problem_.shared_intermediate == 0 &&
           !problem_.expert_bias;
  }
  [[nodiscard]] std::int64_t row_bytes() const {
    return problem_.shape.hidden * static_cast<std::int64_t>(size_of(problem_.dtype));
  }
  static std::int64_t row_blocks(std::int64_t warps) { return (warps + kRowWarps - 1) / kRowWarps; }

  Problem problem_;
  std::int64_t top_k_;  // K'
  DeviceFacts facts_;
  Precompiled precompiled_;
  RoutedSteps steps_;
  std::string from_;
  KernelLibrary library_;
  SpecialisedKernel route_;
  SpecialisedKernel permute_narrow_;
  SpecialisedKernel combine_narrow_;
  SpecialisedKernel swiglu_;
  std::optional<SpecialisedKernel> permute_wide_;
  std::optional<SpecialisedKernel> combine_wide_;
  DeviceBuffer finished_;       // blocks of moe_route that are done
  PinnedBuffer host_offsets_;   // [E+1], which the device writes
  PinnedBuffer host_sequence_;  // number of the forward that host_offsets_ is of
  unsigned sequence_ = 0;
};

}  // namespace

std::int64_t layer_kernels_scratch(const Problem& problem, const DeviceFacts& facts) {
  const Shape shape = with_shared_slots(problem);
  return std::max(permutation_scratch(shape.routed_rows(), shape.experts, facts),
                  route_blocks(problem, facts, shape.tokens) * shape.experts);
}

std::unique_ptr<LayerKernels> make_precompiled_kernels(const Problem& problem,
                                                       const DeviceFacts& facts,
                                                       const Weights& weights) {
  return std::make_unique<Precompiled>(problem, facts, weights);
}

std::unique_ptr<LayerKernels> make_specialised_kernels(const Problem& problem,
                                                       const DeviceFacts& facts,
                                                       const std::string& cache_folder,
                                                       const Weights& weights) {
  return std::make_unique<Specialised>(
      problem, facts, weights, nvrtc_compile_cached(program_for(problem, facts), cache_folder));
}

}  // namespace moe::cuda
