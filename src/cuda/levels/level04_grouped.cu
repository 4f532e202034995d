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
#include "cuda/check.h"
#include "cuda/level_base.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/routed_buffers.h"
#include "cuda/ops/swiglu.h"

namespace moe::cuda {
namespace {

class Grouped final : public CudaLevel {
 public:
  [[nodiscard]] MemoryNeeds memory(const Problem& problem,
                                   const ExecutionOptions& execution) const override {
    ArenaPlan plan;
    static_cast<void>(carve_routed_buffers(plan, problem, device_of(execution).facts()));
    return {.workspace = plan.bytes(), .prepared = kBasePrepared + gate_up_bytes(problem)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    const Shape& shape = problem.shape;
    packed_ = pack_gate_up(problem, weights, stream());
    counted_.emplace(cudaEventDisableTiming);
    offsets_ = PinnedBuffer(static_cast<std::size_t>(shape.experts + 1) * sizeof(std::int32_t));
    gate_up_.emplace(*library_, MatmulSpec{.n = 2 * shape.intermediate,
                                           .k = shape.hidden,
                                           .in = problem.dtype,
                                           .out = problem.dtype});
    down_.emplace(*library_, MatmulSpec{.n = shape.hidden,
                                        .k = shape.intermediate,
                                        .in = problem.dtype,
                                        .out = problem.dtype,
                                        .a_stride = 2 * shape.intermediate});
    gate_up_->choose_up_to(shape.tokens);  // an expert takes every token at most once
    down_->choose_up_to(shape.tokens);
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const RoutedBuffers b = carve_routed_buffers(context.arena, problem_, device_->facts());
    route(context, x, 0, x.dim(0), {b.logits, b.topk_idx, b.topk_weights, b.permutation});
    permute(context, x, b);
    for_each_segment(context, "gemm_gate_up", *gate_up_, b.rows, problem_.shape.hidden,
                     packed_.as<std::byte>(), b.gate_up, 2 * problem_.shape.intermediate);
    swiglu(context, x.dim(0) * problem_.shape.top_k, b);
    for_each_segment(context, "gemm_down", *down_, b.gate_up, 2 * problem_.shape.intermediate,
                     weights_.down.as<std::byte>(), b.rows, problem_.shape.hidden);
    combine(context, y, b);
  }

 private:
  /// Ends with the host knowing expert_offsets.
  void permute(Context& context, const TensorView& x, const RoutedBuffers& b) {
    const Shape& shape = problem_.shape;
    const std::int64_t tokens = x.dim(0);
    const auto row_bytes = static_cast<std::int64_t>(element_bytes(shape.hidden));
    const auto offset_bytes = static_cast<std::size_t>(shape.experts + 1) * sizeof(std::int32_t);
    MOE_CUDA_CHECK(cudaMemcpyAsync(offsets_.as<void>(), b.permutation.expert_offsets, offset_bytes,
                                   cudaMemcpyDeviceToHost, stream()));
    counted_->record(stream());
    // Queued before the wait: the device has this to do while the host learns the counts.
    permute_rows(x.data, b.permutation.dst_row, tokens, shape.top_k, row_bytes, b.rows, stream());
    context.record("permute", static_cast<std::uint64_t>(tokens * shape.top_k * row_bytes), [&] {
      return fmt::format("{} rows of {} bytes by expert", tokens * shape.top_k, row_bytes);
    });
    counted_->wait();
    context.record("wait", offset_bytes,
                   [] { return std::string("the host reads expert_offsets"); });
  }

  /// c[segment] = a[segment] · w[expert]^T for every expert that has rows; strides in elements.
  void for_each_segment(Context& context, const char* op, Matmul& gemm, const std::byte* a,
                        std::int64_t a_stride, const std::byte* w, std::byte* c,
                        std::int64_t c_stride) {
    const Shape& shape = problem_.shape;
    const auto* offsets = offsets_.as<const std::int32_t>();
    const std::uint64_t matrix = element_bytes(gemm.n() * gemm.k());
    for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
      const std::int64_t first = offsets[expert];
      const std::int64_t m = offsets[expert + 1] - first;
      if (m == 0) continue;
      gemm.run(a + element_bytes(first * a_stride), w + static_cast<std::uint64_t>(expert) * matrix,
               c + element_bytes(first * c_stride), m, stream());
      context.record(op, element_bytes(m * gemm.n()), [&] {
        return fmt::format("expert {} m={} n={} k={}", expert, m, gemm.n(), gemm.k());
      });
    }
  }

  void swiglu(Context& context, std::int64_t rows, const RoutedBuffers& b) {
    const std::int64_t intermediate = problem_.shape.intermediate;
    swiglu_rows(problem_.dtype, b.gate_up, rows, intermediate, b.gate_up, 2 * intermediate,
                stream());
    context.record("swiglu", element_bytes(rows * intermediate),
                   [&] { return fmt::format("{} rows x {} columns", rows, intermediate); });
  }

  void combine(Context& context, const TensorView& y, const RoutedBuffers& b) {
    const Shape& shape = problem_.shape;
    unpermute_rows(problem_.dtype, b.rows, b.permutation.dst_row, b.topk_weights, y.dim(0),
                   shape.top_k, shape.hidden, y.data, stream());
    context.record("unpermute", y.bytes(), [&] {
      return fmt::format("{} tokens, weighted sum of {} rows", y.dim(0), shape.top_k);
    });
  }

  DeviceBuffer packed_;   // [E,2·I,H]
  PinnedBuffer offsets_;  // [E+1]
  std::optional<Event> counted_;
  std::optional<Matmul> gate_up_;
  std::optional<Matmul> down_;
};

}  // namespace

std::unique_ptr<Level> make_level04_grouped() {
  return std::make_unique<Grouped>();
}

}  // namespace moe::cuda
