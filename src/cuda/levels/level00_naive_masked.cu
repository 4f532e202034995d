// Level 00, variant naive_masked — the other reading of "naive": a loop over experts, each masking
// the tokens that chose it.
// Changes   as model code in a framework writes it: for every expert, mask = (topk_idx == expert),
//           the rows where it holds, x[rows], the expert's projections on them, and an addition of
//           the weighted results into the tokens' sums. The loop has E steps instead of T·K.
// Why       the products have as many rows as the expert has tokens, so the weights are read once an
//           expert and not once a routed row:
//             FLOPs         6·T·K·H·I + 2·T·H·E, unchanged
//             weight bytes  3·E_hit·H·I·b
//             launches      E + 7·E_hit
// Costs     the number of rows is not known before the mask has been looked through, so the host
//           waits E times in a forward, and every wait empties the device. Each of the E masks reads
//           all of topk_idx. Buffers are allocated by the loop, of the size that each expert needs.
// Measured  docs/levels/level00_naive.md
//
//   x[T,H] ─▶ logits[T,E] ─▶ top-k ─▶ sum[T,H] = 0 ─▶ for each expert:
//             mask ─▶ rows[m] ─▶ host ─▶ x[rows] ─▶ gate, up[m,I] ─▶ act[m,I] ─▶ out[m,H]
//             ─▶ sum[token of row] += weight of row · out
#include "cuda/check.h"
#include "cuda/device/element.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/level_base.h"
#include "cuda/ops/activation.h"
#include "cuda/ops/expert_matrices.h"
#include "cuda/ops/swiglu.h"
#include "cuda/ops/transient.h"

namespace moe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaskThreads = 1024;

unsigned blocks_for(std::int64_t work) {
  return static_cast<unsigned>((work + kThreads - 1) / kThreads);
}

/// rows[0..*count) = the r in order with topk_idx[r] == expert. One block.
__global__ void __launch_bounds__(kMaskThreads)
    rows_of_expert_kernel(const std::int32_t* __restrict__ topk_idx, std::int64_t routed,
                          int expert, std::int32_t* __restrict__ rows,
                          std::int32_t* __restrict__ count) {
  constexpr int kWarps = kMaskThreads / kWarpSize;
  __shared__ int warp_totals[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  int found = 0;  // by the steps before
  for (std::int64_t step = 0; step < routed; step += kMaskThreads) {
    const std::int64_t row = step + threadIdx.x;
    const bool chosen = row < routed && topk_idx[row] == expert;
    const unsigned votes = __ballot_sync(kAllLanes, chosen);
    if (lane == 0) warp_totals[warp] = __popc(votes);
    __syncthreads();
    int before = found;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += warp_totals[w];
      found += warp_totals[w];
    }
    if (chosen) rows[before + __popc(votes & ((1U << lane) - 1))] = static_cast<std::int32_t>(row);
    __syncthreads();
  }
  if (threadIdx.x == 0) *count = found;
}

/// out[i,:] = x[token of rows[i],:]
template <class Element>
__global__ void __launch_bounds__(kThreads)
    take_rows_kernel(const Element* __restrict__ x, const std::int32_t* __restrict__ rows,
                     std::int64_t count, int top_k, std::int64_t hidden,
                     Element* __restrict__ out) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count * hidden) return;
  out[at] = x[rows[at / hidden] / top_k * hidden + at % hidden];
}

/// sum[token of rows[i],:] += weight of rows[i] · (out[i,:] + bias[:]); topk_weights null: 1, bias null: 0.
/// Given routes may name an expert twice in a token's slots, which are neighbours in `rows`: the thread of
/// the first adds them all, so that no two meet.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(const Element* __restrict__ out, const std::int32_t* __restrict__ rows,
                    const float* __restrict__ topk_weights, const float* __restrict__ bias,
                    std::int64_t count, int top_k, std::int64_t hidden, float* __restrict__ sum) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count * hidden) return;
  const std::int64_t column = at % hidden;
  std::int64_t i = at / hidden;
  const std::int32_t token = rows[i] / top_k;
  if (i > 0 && rows[i - 1] / top_k == token) return;
  float& total = sum[token * hidden + column];
  for (; i < count && rows[i] / top_k == token; ++i) {
    const float value =
        to_float(out[i * hidden + column]) + (bias == nullptr ? 0.0F : bias[column]);
    total = fmaf(topk_weights == nullptr ? 1.0F : topk_weights[rows[i]], value, total);
  }
}

template <class Element>
__global__ void __launch_bounds__(kThreads)
    round_kernel(const float* __restrict__ sum, std::int64_t count, Element* __restrict__ y) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < count) y[at] = from_float<Element>(sum[at]);
}

class NaiveMasked final : public CudaLevel {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    const Shape shape = with_shared_slots(problem);
    const std::int64_t most_rows = most_rows_of_expert(problem, shape.tokens);
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return TransientBuffer::footprint(static_cast<std::uint64_t>(count) * size);
    };
    const std::size_t element = size_of(problem.dtype);
    // All tokens may choose one expert.
    return {.transient = routing_footprint(problem) + bytes(shape.routed_rows(), sizeof(float)) +
                         bytes(1, sizeof(float)) +
                         bytes(shape.tokens * shape.hidden, sizeof(float)) +
                         2 * bytes(most_rows * shape.hidden, element) +
                         4 * bytes(most_rows * shape.intermediate, element),
            .prepared = kBasePrepared + ExpertMatrixSet::bytes(problem)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    const Shape& shape = problem.shape;
    experts_ = ExpertMatrixSet(problem, weights, stream());
    pool_.emplace(*device_);
    const auto product = [&](std::int64_t n, std::int64_t k) {
      Matmul matmul(*library_,
                    MatmulSpec{.n = n, .k = k, .in = problem.dtype, .out = problem.dtype});
      matmul.choose_up_to(most_rows_of_expert(problem, shape.tokens));
      return matmul;
    };
    gate_or_up_.emplace(product(shape.intermediate, shape.hidden));
    down_.emplace(product(shape.hidden, shape.intermediate));
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const Shape& shape = routed_;
    const std::int64_t tokens = x.dim(0);
    const std::int64_t routed = tokens * shape.top_k;
    const auto floats = [](std::int64_t count) {
      return static_cast<std::uint64_t>(count) * sizeof(float);
    };
    const auto take = [&](const char* what, std::uint64_t bytes) {
      return allocate(context, *pool_, what, bytes);
    };
    const TransientRouting routing = take_routing(context, *pool_, tokens);
    route(context, x, 0, tokens, routing.views());
    const TransientBuffer rows = take("rows[TK]", floats(routed));
    const TransientBuffer count = take("count[1]", floats(1));
    const TransientBuffer sum = take("sum[T,H]", floats(tokens * shape.hidden));
    MOE_CUDA_CHECK(cudaMemsetAsync(sum.data(), 0, floats(tokens * shape.hidden), stream()));

    std::int64_t hit = 0;
    for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
      rows_of_expert_kernel<<<1, kMaskThreads, 0, stream()>>>(
          routing.topk_idx.as<std::int32_t>(), routed, static_cast<int>(expert),
          rows.as<std::int32_t>(), count.as<std::int32_t>());
      MOE_CUDA_CHECK_LAUNCH("rows_of_expert_kernel");
      std::int32_t chosen = 0;
      device_->copy_to_host(&chosen, count.data(), sizeof(chosen));
      if (chosen == 0) continue;
      run_expert(context, expert, chosen, x, rows.as<std::int32_t>(),
                 routing.topk_weights.as<float>(), sum.as<float>());
      ++hit;
    }
    context.record("expert_loop", y.bytes(), [&] {
      return fmt::format("{} masks and waits, {} experts x 7 launches", shape.experts, hit);
    });
    const std::int64_t elements = tokens * shape.hidden;
    with_device_type(problem_.dtype, [&]<class Element>() {
      round_kernel<<<blocks_for(elements), kThreads, 0, stream()>>>(sum.as<const float>(), elements,
                                                                    y.as<Element>());
    });
    MOE_CUDA_CHECK_LAUNCH("round_kernel");
  }

 private:
  void run_expert(Context& context, std::int64_t expert, std::int64_t count, const TensorView& x,
                  const std::int32_t* rows, const float* topk_weights, float* sum) {
    const Shape& shape = problem_.shape;
    const DType dtype = problem_.dtype;
    const auto top_k = static_cast<int>(routed_.top_k);
    const bool gated = problem_.activation.gated();
    const bool on_input = problem_.router.weight_on_input;
    const std::int64_t inner = count * shape.intermediate;
    const std::int64_t outer = count * shape.hidden;
    const auto take = [&](const char* what, std::int64_t elements) {
      return allocate(context, *pool_, what, element_bytes(elements));
    };
    const TransientBuffer x_rows = take("x[m,H]", outer);
    with_device_type(dtype, [&]<class Element>() {
      take_rows_kernel<<<blocks_for(outer), kThreads, 0, stream()>>>(
          x.as<const Element>(), rows, count, top_k, shape.hidden, x_rows.as<Element>());
    });
    MOE_CUDA_CHECK_LAUNCH("take_rows_kernel");
    const TransientBuffer gate = gated ? take("gate[m,I]", inner) : TransientBuffer();
    const TransientBuffer up = take("up[m,I]", inner);
    if (gated) {
      gate_or_up_->run(x_rows.data(), experts_.gate.at(expert, dtype), gate.data(), count,
                       stream());
    }
    gate_or_up_->run(x_rows.data(), experts_.up.at(expert, dtype), up.data(), count, stream());
    const bool plain = plain_activation();
    const TransientBuffer activated = plain ? take("silu[m,I]", inner) : TransientBuffer();
    if (plain) silu(dtype, gate.data(), inner, activated.data(), stream());
    const TransientBuffer act = take("act[m,I]", inner);
    if (plain) {
      multiply(dtype, activated.data(), up.data(), inner, act.data(), stream());
    } else {
      activate_slots(problem_, weights_,
                     {.dtype = dtype,
                      .gate = gate.data(),
                      .up = up.data(),
                      .rows = count,
                      .columns = shape.intermediate,
                      .act = act.data(),
                      .expert = expert,
                      .weights = on_input ? topk_weights : nullptr,
                      .slots = rows},
                     stream());
    }
    const TransientBuffer out = take("out[m,H]", outer);
    down_->run(act.data(), experts_.down.at(expert, dtype), out.data(), count, stream());
    const bool biased = problem_.expert_bias && expert < shape.experts;
    const float* const bias =
        biased ? weights_.down_bias.as<const float>() + expert * shape.hidden : nullptr;
    with_device_type(dtype, [&]<class Element>() {
      add_rows_kernel<<<blocks_for(outer), kThreads, 0, stream()>>>(
          out.as<const Element>(), rows, on_input ? nullptr : topk_weights, bias, count, top_k,
          shape.hidden, sum);
    });
    MOE_CUDA_CHECK_LAUNCH("add_rows_kernel");
  }

  ExpertMatrixSet experts_;
  std::optional<MemoryPool> pool_;
  std::optional<Matmul> gate_or_up_;
  std::optional<Matmul> down_;
};

}  // namespace

std::unique_ptr<Level> make_variant_naive_masked() {
  return std::make_unique<NaiveMasked>();
}

}  // namespace moe::cuda
