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

/// sum[token of rows[i],:] += topk_weights[rows[i]] · out[i,:]. A token chooses an expert once, so no
/// two i meet.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(const Element* __restrict__ out, const std::int32_t* __restrict__ rows,
                    const float* __restrict__ topk_weights, std::int64_t count, int top_k,
                    std::int64_t hidden, float* __restrict__ sum) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count * hidden) return;
  const std::int32_t row = rows[at / hidden];
  float& total = sum[row / top_k * hidden + at % hidden];
  total = fmaf(topk_weights[row], to_float(out[at]), total);
}

template <class Element>
__global__ void __launch_bounds__(kThreads)
    round_kernel(const float* __restrict__ sum, std::int64_t count, Element* __restrict__ y) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < count) y[at] = from_float<Element>(sum[at]);
}

class NaiveMasked final : public CudaLevel {
 public:
  [[nodiscard]] Features features() const override { return {.routers = true}; }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    const Shape& shape = problem.shape;
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return TransientBuffer::footprint(static_cast<std::uint64_t>(count) * size);
    };
    const std::size_t element = size_of(problem.dtype);
    // All tokens may choose one expert.
    return {.transient = bytes(shape.tokens * shape.experts, sizeof(float)) +
                         3 * bytes(shape.routed_rows(), sizeof(float)) + bytes(1, sizeof(float)) +
                         bytes(shape.tokens * shape.hidden, sizeof(float)) +
                         2 * bytes(shape.tokens * shape.hidden, element) +
                         4 * bytes(shape.tokens * shape.intermediate, element),
            .prepared = kBasePrepared};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    const Shape& shape = problem.shape;
    pool_.emplace(*device_);
    const auto product = [&](std::int64_t n, std::int64_t k) {
      Matmul matmul(*library_,
                    MatmulSpec{.n = n, .k = k, .in = problem.dtype, .out = problem.dtype});
      matmul.choose_up_to(shape.tokens);
      return matmul;
    };
    gate_or_up_.emplace(product(shape.intermediate, shape.hidden));
    down_.emplace(product(shape.hidden, shape.intermediate));
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const Shape& shape = problem_.shape;
    const std::int64_t tokens = x.dim(0);
    const std::int64_t routed = tokens * shape.top_k;
    const auto floats = [](std::int64_t count) {
      return static_cast<std::uint64_t>(count) * sizeof(float);
    };
    const auto take = [&](const char* what, std::uint64_t bytes) {
      return allocate(context, *pool_, what, bytes);
    };
    const TransientBuffer logits = take("router_logits[T,E]", floats(tokens * shape.experts));
    const TransientBuffer topk_idx = take("topk_idx[T,K]", floats(routed));
    const TransientBuffer topk_weights = take("topk_weights[T,K]", floats(routed));
    route(context, x, 0, tokens,
          {logits.as<float>(), topk_idx.as<std::int32_t>(), topk_weights.as<float>()});
    const TransientBuffer rows = take("rows[TK]", floats(routed));
    const TransientBuffer count = take("count[1]", floats(1));
    const TransientBuffer sum = take("sum[T,H]", floats(tokens * shape.hidden));
    MOE_CUDA_CHECK(cudaMemsetAsync(sum.data(), 0, floats(tokens * shape.hidden), stream()));

    std::int64_t hit = 0;
    for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
      rows_of_expert_kernel<<<1, kMaskThreads, 0, stream()>>>(
          topk_idx.as<std::int32_t>(), routed, static_cast<int>(expert), rows.as<std::int32_t>(),
          count.as<std::int32_t>());
      MOE_CUDA_CHECK_LAUNCH("rows_of_expert_kernel");
      std::int32_t chosen = 0;
      device_->copy_to_host(&chosen, count.data(), sizeof(chosen));
      if (chosen == 0) continue;
      run_expert(context, expert, chosen, x, rows.as<std::int32_t>(), topk_weights.as<float>(),
                 sum.as<float>());
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
    const auto top_k = static_cast<int>(shape.top_k);
    const std::uint64_t matrix = element_bytes(expert * shape.intermediate * shape.hidden);
    const std::int64_t inner = count * shape.intermediate;
    const std::int64_t outer = count * shape.hidden;
    const TransientBuffer x_rows = allocate(context, *pool_, "x[m,H]", element_bytes(outer));
    with_device_type(problem_.dtype, [&]<class Element>() {
      take_rows_kernel<<<blocks_for(outer), kThreads, 0, stream()>>>(
          x.as<const Element>(), rows, count, top_k, shape.hidden, x_rows.as<Element>());
    });
    MOE_CUDA_CHECK_LAUNCH("take_rows_kernel");
    const TransientBuffer gate = allocate(context, *pool_, "gate[m,I]", element_bytes(inner));
    const TransientBuffer up = allocate(context, *pool_, "up[m,I]", element_bytes(inner));
    gate_or_up_->run(x_rows.data(), weights_.gate.as<std::byte>() + matrix, gate.data(), count,
                     stream());
    gate_or_up_->run(x_rows.data(), weights_.up.as<std::byte>() + matrix, up.data(), count,
                     stream());
    const TransientBuffer activated = allocate(context, *pool_, "silu[m,I]", element_bytes(inner));
    silu(problem_.dtype, gate.data(), inner, activated.data(), stream());
    const TransientBuffer act = allocate(context, *pool_, "act[m,I]", element_bytes(inner));
    multiply(problem_.dtype, activated.data(), up.data(), inner, act.data(), stream());
    const TransientBuffer out = allocate(context, *pool_, "out[m,H]", element_bytes(outer));
    down_->run(act.data(), weights_.down.as<std::byte>() + matrix, out.data(), count, stream());
    with_device_type(problem_.dtype, [&]<class Element>() {
      add_rows_kernel<<<blocks_for(outer), kThreads, 0, stream()>>>(
          out.as<const Element>(), rows, topk_weights, count, top_k, shape.hidden, sum);
    });
    MOE_CUDA_CHECK_LAUNCH("add_rows_kernel");
  }

  std::optional<MemoryPool> pool_;
  std::optional<Matmul> gate_or_up_;
  std::optional<Matmul> down_;
};

}  // namespace

std::unique_ptr<Level> make_variant_naive_masked() {
  return std::make_unique<NaiveMasked>();
}

}  // namespace moe::cuda
