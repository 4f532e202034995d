// Level 00 · naive — token by token, expert by expert, as a loop over tokens issues it.
// Builds on nothing.
// Changes   nothing: this is the definition of the layer written down as a loop on the host, which
//           launches a GEMM for every projection of every routed row.
// Why       it is the baseline that every speedup is measured against, so it has to be a fair one:
//           the projections are the library's GEMMs on weights contiguous along the reduction, and
//           routing is done for all tokens at once.
//             FLOPs         6·T·K·H·I + 2·T·H·E
//             weight bytes  3·T·K·H·I·b: every routed row reads its expert's matrices
//             launches      6·T·K
// Costs     a launch takes the host a few microseconds, and a product with one row neither fills the
//           device nor lasts that long: the host is the limit. Before the loop the host has to wait
//           for the routing, because it decides which matrices to launch.
// Measured  docs/levels/level00_naive.md
//
//   x[T,H] ─▶ logits[T,E] ─▶ top-k ─▶ host ─▶ for each token, for each of its K experts:
//             gate[I], up[I] ─silu─multiply─▶ act[I] ─down─▶ out[H] ─▶ sum[H] += weight · out
#include <vector>

#include "cuda/check.h"
#include "cuda/device/element.cuh"
#include "cuda/level_base.h"
#include "cuda/ops/activation.h"
#include "cuda/ops/expert_matrices.h"
#include "cuda/ops/swiglu.h"
#include "cuda/ops/transient.h"

namespace moe::cuda {
namespace {

/// sum[h] = (first ? 0 : sum[h]) + *weight · (out[h] + bias[h]); weight null: 1, bias null: 0. The last
/// expert of a token writes y.
template <class Element>
__global__ void weighted_add_kernel(const Element* __restrict__ out, const float* __restrict__ bias,
                                    const float* __restrict__ weight, std::int64_t hidden,
                                    bool first, float* __restrict__ sum, Element* __restrict__ y) {
  const std::int64_t h = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (h >= hidden) return;
  const float row = to_float(out[h]) + (bias == nullptr ? 0.0F : bias[h]);
  const float value = fmaf(weight == nullptr ? 1.0F : *weight, row, first ? 0.0F : sum[h]);
  if (y == nullptr) {
    sum[h] = value;
  } else {
    y[h] = from_float<Element>(value);
  }
}

class Naive final : public CudaLevel {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    const Shape& shape = problem.shape;
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return TransientBuffer::footprint(static_cast<std::uint64_t>(count) * size);
    };
    const std::size_t element = size_of(problem.dtype);
    return {.transient = routing_footprint(problem) + 4 * bytes(shape.intermediate, element) +
                         bytes(shape.hidden, element) + bytes(shape.hidden, sizeof(float)),
            .prepared = kBasePrepared + ExpertMatrixSet::bytes(problem)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    const Shape& shape = problem.shape;
    experts_ = ExpertMatrixSet(problem, weights, stream());
    pool_.emplace(*device_);
    gate_or_up_.emplace(
        *library_,
        MatmulSpec{
            .n = shape.intermediate, .k = shape.hidden, .in = problem.dtype, .out = problem.dtype});
    down_.emplace(
        *library_,
        MatmulSpec{
            .n = shape.hidden, .k = shape.intermediate, .in = problem.dtype, .out = problem.dtype});
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const Shape& shape = routed_;
    const std::int64_t tokens = x.dim(0);
    const std::int64_t rows = tokens * shape.top_k;
    const auto floats = [](std::int64_t count) {
      return static_cast<std::uint64_t>(count) * sizeof(float);
    };
    const auto take = [&](const char* what, std::uint64_t bytes) {
      return allocate(context, *pool_, what, bytes);
    };
    const TransientRouting routing = take_routing(context, *pool_, tokens);
    route(context, x, 0, tokens, routing.views());
    std::vector<std::int32_t> chosen(static_cast<std::size_t>(rows));
    device_->copy_to_host(chosen.data(), routing.topk_idx.data(),
                          chosen.size() * sizeof(chosen[0]));
    context.record("wait", chosen.size() * sizeof(chosen[0]),
                   [] { return std::string("the host reads topk_idx"); });

    const Row row{take("gate[I]", element_bytes(shape.intermediate)),
                  take("up[I]", element_bytes(shape.intermediate)),
                  take("silu[I]", element_bytes(shape.intermediate)),
                  take("act[I]", element_bytes(shape.intermediate)),
                  take("out[H]", element_bytes(shape.hidden)),
                  take("sum[H]", floats(shape.hidden))};
    for (std::int64_t token = 0; token < tokens; ++token) {
      run_token(chosen.data() + token * shape.top_k, x, token, routing.topk_weights.as<float>(),
                row, y);
    }
    context.record("token_loop", y.bytes(), [&] {
      return fmt::format("{} tokens x {} experts, {} launches each", tokens, shape.top_k,
                         plain_activation() ? 6 : 3 + (problem_.activation.gated() ? 2 : 1));
    });
  }

 private:
  struct Row {
    TransientBuffer gate, up, silu, act, out, sum;
  };

  void run_token(const std::int32_t* experts, const TensorView& x, std::int64_t token,
                 const float* topk_weights, const Row& row, const TensorView& y) {
    const Shape& shape = routed_;
    std::int64_t last = shape.top_k - 1;
    while (last >= 0 && experts[last] < 0) --last;
    std::byte* const out = y.as<std::byte>() + element_bytes(token * shape.hidden);
    if (last < 0) {  // no slot is used
      MOE_CUDA_CHECK(cudaMemsetAsync(out, 0, element_bytes(shape.hidden), stream()));
      return;
    }
    const std::byte* const input = x.as<std::byte>() + element_bytes(token * shape.hidden);
    bool first = true;
    for (std::int64_t slot = 0; slot <= last; ++slot) {
      if (experts[slot] < 0) continue;
      run_expert(experts[slot], input, topk_weights + token * shape.top_k + slot, row);
      add(experts[slot], row, topk_weights + token * shape.top_k + slot, first,
          slot == last ? out : nullptr);
      first = false;
    }
  }

  /// row.out of one expert. `weight` is the slot's.
  void run_expert(std::int64_t expert, const std::byte* input, const float* weight,
                  const Row& row) {
    const Shape& shape = problem_.shape;
    const DType dtype = problem_.dtype;
    const bool gated = problem_.activation.gated();
    if (gated) {
      gate_or_up_->run(input, experts_.gate.at(expert, dtype), row.gate.data(), 1, stream());
    }
    gate_or_up_->run(input, experts_.up.at(expert, dtype), row.up.data(), 1, stream());
    if (plain_activation()) {
      silu(dtype, row.gate.data(), shape.intermediate, row.silu.data(), stream());
      multiply(dtype, row.silu.data(), row.up.data(), shape.intermediate, row.act.data(), stream());
    } else {
      activate_slots(problem_, weights_,
                     {.dtype = dtype,
                      .gate = gated ? row.gate.data() : nullptr,
                      .up = row.up.data(),
                      .rows = 1,
                      .columns = shape.intermediate,
                      .act = row.act.data(),
                      .expert = expert,
                      .weights = problem_.router.weight_on_input ? weight : nullptr},
                     stream());
    }
    down_->run(row.act.data(), experts_.down.at(expert, dtype), row.out.data(), 1, stream());
  }

  /// The weighted output into the token's sum, or, `y` not null, from it into y.
  void add(std::int64_t expert, const Row& row, const float* weight, bool first, std::byte* y) {
    const std::int64_t hidden = problem_.shape.hidden;
    const bool biased = problem_.expert_bias && expert < problem_.shape.experts;
    const float* const bias =
        biased ? weights_.down_bias.as<const float>() + expert * hidden : nullptr;
    with_device_type(problem_.dtype, [&]<class Element>() {
      constexpr unsigned kThreads = 256;
      const auto blocks = static_cast<unsigned>((hidden + kThreads - 1) / kThreads);
      weighted_add_kernel<<<blocks, kThreads, 0, stream()>>>(
          row.out.as<const Element>(), bias, problem_.router.weight_on_input ? nullptr : weight,
          hidden, first, row.sum.as<float>(), reinterpret_cast<Element*>(y));
    });
    MOE_CUDA_CHECK_LAUNCH("weighted_add_kernel");
  }

  ExpertMatrixSet experts_;
  std::optional<MemoryPool> pool_;
  std::optional<Matmul> gate_or_up_;
  std::optional<Matmul> down_;
};

}  // namespace

std::unique_ptr<Level> make_level00_naive() {
  return std::make_unique<Naive>();
}

}  // namespace moe::cuda
