// Level 04 · grouped — permute tokens by expert, then one GEMM per non-empty expert.
// Builds on 03 (arena).
// Changes   routed rows of one expert become contiguous, so its weights are read once for all of
//           them and the products become GEMMs, which the tensor cores can run.
// Why       weight bytes  03: 3·T·K·H·I·b    04: 3·E_hit·H·I·b    FLOPs 6·T·K·H·I + 2·T·H·E (unchanged)
//           m ≈ T·K/E rows now share each weight: FLOPs per weight byte grow from 2/b to 2·m/b.
// Costs     permute and combine move T·K·H·4·b bytes, SwiGLU is a pass of its own again (3·T·K·I·b
//           bytes), gate|up are kept a second time side by side so that one GEMM makes both. And the
//           loop over experts runs on the host, which has to wait until the device has counted the
//           rows of each: one round trip in the middle of every forward, during which the device
//           permutes and then has nothing to do. Nothing of it can be captured in a graph → level 05.
// Measured  docs/levels/level04_grouped.md
//
//   x[T,H] ─permute─▶ rows[TK,H] ─gate_up─▶ gate_up[TK,2I] ─swiglu─▶ act ─down─▶ rows[TK,H] ─combine─▶ y
//                     └ e0 ┘└─ e1 ─┘└ e2 ┘  segment e = rows expert_offsets[e] .. expert_offsets[e+1]
#include <utility>

#include "cuda/grouped_level.h"
#include "cuda/nvrtc.h"
#include "cuda/ops/swiglu.h"

namespace moe::cuda {
namespace {

// The forward is GroupedLevel's. Variants change one thing each, to measure it alone (docs/myths.md).
enum class Variation : std::uint8_t {
  kNone,
  kStreams,      // the experts' GEMMs in several streams
  kUnfused,      // SiLU and the product with up as two passes
  kSpecialised,  // the kernels around the GEMMs compiled for this layer's sizes
};

constexpr int kStreams = 4;

/// Two passes over gate and up where SwiGLU is one: 5·T·K·I·b bytes instead of 3.
class UnfusedSwiglu final : public LayerKernels {
 public:
  UnfusedSwiglu(const Problem& problem, std::unique_ptr<LayerKernels> others)
      : problem_(problem), others_(std::move(others)) {}

  void activate(const RoutedBuffers& b, std::int64_t first, std::int64_t rows,
                cudaStream_t stream) override {
    const std::int64_t columns = problem_.shape.intermediate;
    const auto element = static_cast<std::int64_t>(size_of(problem_.dtype));
    std::byte* const gate = b.gate_up + first * 2 * columns * element;
    const std::byte* const up = gate + columns * element;
    silu_rows(problem_.dtype, gate, rows, columns, 2 * columns, gate, stream);
    multiply_rows(problem_.dtype, gate, up, rows, columns, 2 * columns, gate, stream);
  }
  void route(const RoutingInputs& in, const RoutedBuffers& b, std::int64_t tokens, HostReads reads,
             cudaStream_t stream) override {
    others_->route(in, b, tokens, reads, stream);
  }
  void permute(const TensorView& x, const RoutedBuffers& b, cudaStream_t stream) override {
    others_->permute(x, b, stream);
  }
  const std::int32_t* wait_for_offsets(cudaStream_t stream) override {
    return others_->wait_for_offsets(stream);
  }
  void combine(const RoutedBuffers& b, const TensorView& y, cudaStream_t stream) override {
    others_->combine(b, y, stream);
  }
  std::string describe() const override { return others_->describe() + ", SwiGLU in two passes"; }

 private:
  Problem problem_;
  std::unique_ptr<LayerKernels> others_;
};

class Grouped final : public GroupedLevel {
 public:
  explicit Grouped(Variation variation) : variation_(variation) {}

  [[nodiscard]] Features features() const override {
    Features features = Features::all();
    if (variation_ == Variation::kUnfused) {  // its two passes are of SwiGLU
      features.activations = features.ungated = features.expert_bias = false;
    }
    return features;
  }
  [[nodiscard]] std::string unsupported(const Problem& problem,
                                        const ExecutionOptions& execution) const override {
    const std::string reason = CudaLevel::unsupported(problem, execution);
    if (!reason.empty() || variation_ != Variation::kSpecialised) return reason;
    return nvrtc_unavailable();
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    std::unique_ptr<LayerKernels> kernels =
        variation_ == Variation::kSpecialised
            ? make_specialised_kernels(problem, device_->facts(), execution.tune_cache, weights)
            : make_precompiled_kernels(problem, device_->facts(), weights);
    if (variation_ == Variation::kUnfused) {
      kernels = std::make_unique<UnfusedSwiglu>(problem, std::move(kernels));
    }
    keep_experts(std::move(kernels), schedule(problem.shape.tokens).streams);
    gemms_->choose_up_to(problem.shape.tokens);
  }

  [[nodiscard]] std::string plan() const override {
    return kernels_->describe() + "; " + describe(schedule(problem_.shape.tokens));
  }

 protected:
  [[nodiscard]] ExpertSchedule schedule(std::int64_t) const override {
    return variation_ == Variation::kStreams ? ExpertSchedule{.streams = kStreams}
                                             : ExpertSchedule{};
  }

 private:
  Variation variation_;
};

}  // namespace

std::unique_ptr<Level> make_level04_grouped() {
  return std::make_unique<Grouped>(Variation::kNone);
}
std::unique_ptr<Level> make_variant_grouped_streams() {
  return std::make_unique<Grouped>(Variation::kStreams);
}
std::unique_ptr<Level> make_variant_grouped_unfused() {
  return std::make_unique<Grouped>(Variation::kUnfused);
}
std::unique_ptr<Level> make_variant_grouped_specialised() {
  return std::make_unique<Grouped>(Variation::kSpecialised);
}

}  // namespace moe::cuda
