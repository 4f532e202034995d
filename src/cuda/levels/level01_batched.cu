// Level 01 · batched — gather each routed row's weights, then one batched product.
// Builds on 00.
// Changes   the loops over tokens and experts become one batched GEMM per projection. To make the
//           batch uniform, each routed row first receives its own copy of its expert's matrix, one
//           matrix at a time: weights[topk_idx] followed by bmm, as a framework writes it.
// Why       three batched GEMMs and three copies replace 6·T·K launches, and the host no longer has
//           to know the routing.
//             FLOPs         6·T·K·H·I + 2·T·H·E, unchanged
//             weight bytes  3·T·K·H·I·b read and written by the gather, then read again by the
//                           product
// Costs     T·K·H·I·b of memory for each matrix in turn (T=8192, K=2, H=1024, I=2048 in bf16: 64 GiB).
//           The copy moves no useful data, and a product with one row does 2 FLOPs a weight, where the
//           tensor cores want hundreds. All buffers are allocated by forward itself.
// Measured  docs/levels/level01_batched.md
//
//   route ─▶ gather gate ─▶ gate[TK,I] ─silu─┐
//            gather up   ─▶ up[TK,I]   ──────┴─multiply─▶ act[TK,I] ─▶ gather down ─▶ y_rows[TK,H]
//         ─▶ combine
#include "cuda/level_base.h"
#include "cuda/ops/gather.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/swiglu.h"
#include "cuda/ops/transient.h"

namespace moe::cuda {
namespace {

class Batched final : public CudaLevel {
 public:
  [[nodiscard]] Features features() const override { return {.routers = true}; }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    const Shape& shape = problem.shape;
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return TransientBuffer::footprint(static_cast<std::uint64_t>(count) * size);
    };
    const std::int64_t rows = shape.routed_rows();
    const std::size_t element = size_of(problem.dtype);
    return {.transient = bytes(shape.tokens * shape.experts, sizeof(float)) +
                         2 * bytes(rows, sizeof(float)) +
                         4 * bytes(rows * shape.intermediate, element) +
                         bytes(rows * shape.hidden, element) +
                         bytes(rows * shape.intermediate * shape.hidden, element),
            .prepared = kBasePrepared};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    const Shape& shape = problem.shape;
    const std::int64_t matrix = shape.intermediate * shape.hidden;
    pool_.emplace(*device_);
    // The K matrices of a token lie one after the other: one matrix of K·I rows, times one x.
    gate_or_up_.emplace(*library_, MatmulSpec{.n = shape.top_k * shape.intermediate,
                                              .k = shape.hidden,
                                              .in = problem.dtype,
                                              .out = problem.dtype,
                                              .batch_stride_w = shape.top_k * matrix,
                                              .batch_stride_a = shape.hidden,
                                              .batch_stride_c = shape.top_k * shape.intermediate});
    down_.emplace(*library_, MatmulSpec{.n = shape.hidden,
                                        .k = shape.intermediate,
                                        .in = problem.dtype,
                                        .out = problem.dtype,
                                        .batch_stride_w = matrix,
                                        .batch_stride_a = shape.intermediate,
                                        .batch_stride_c = shape.hidden});
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const Shape& shape = problem_.shape;
    const std::int64_t tokens = x.dim(0);
    const std::int64_t rows = tokens * shape.top_k;
    const auto floats = [](std::int64_t count) {
      return static_cast<std::uint64_t>(count) * sizeof(float);
    };
    const auto take = [&](const char* what, std::uint64_t bytes) {
      return allocate(context, *pool_, what, bytes);
    };
    // NOTE: one place for the three copies in turn, taken before all else. Taken and freed
    // three times, it left the pool with two places of that size, because smaller buffers came to lie in
    // the first one.
    const TransientBuffer gathered =
        take("gathered matrices[TK,I,H]", element_bytes(rows * shape.intermediate * shape.hidden));
    const TransientBuffer logits = take("router_logits[T,E]", floats(tokens * shape.experts));
    const TransientBuffer topk_idx = take("topk_idx[T,K]", floats(rows));
    const TransientBuffer topk_weights = take("topk_weights[T,K]", floats(rows));
    route(context, x, 0, tokens,
          {logits.as<float>(), topk_idx.as<std::int32_t>(), topk_weights.as<float>()});

    const auto project = [&](const char* name, const TensorView& weights, Matmul& product,
                             const void* inputs, std::int64_t batch, void* out) {
      const std::int64_t matrix = weights.dim(1) * weights.dim(2);
      gather_weights(weights, topk_idx.as<std::int32_t>(), rows, {0, weights.dim(1)}, matrix,
                     gathered.data(), stream());
      context.record("gather", element_bytes(rows * matrix), [&] { return std::string(name); });
      product.run(inputs, gathered.data(), out, 1, stream(), batch);
      context.record("batched_product", element_bytes(rows * weights.dim(1)), [&] {
        return fmt::format("{} x [{},{}]", rows, weights.dim(1), weights.dim(2));
      });
    };
    const std::uint64_t inner = element_bytes(rows * shape.intermediate);
    const TransientBuffer gate = take("gate[TK,I]", inner);
    const TransientBuffer up = take("up[TK,I]", inner);
    const TransientBuffer activated = take("silu[TK,I]", inner);
    const TransientBuffer act = take("act[TK,I]", inner);
    project("gathered gate[TK,I,H]", weights_.gate, *gate_or_up_, x.data, tokens, gate.data());
    project("gathered up[TK,I,H]", weights_.up, *gate_or_up_, x.data, tokens, up.data());

    silu(problem_.dtype, gate.data(), rows * shape.intermediate, activated.data(), stream());
    context.record("silu", inner,
                   [&] { return fmt::format("{} elements", rows * shape.intermediate); });
    multiply(problem_.dtype, activated.data(), up.data(), rows * shape.intermediate, act.data(),
             stream());
    context.record("multiply", inner,
                   [&] { return fmt::format("{} elements", rows * shape.intermediate); });

    const TransientBuffer y_rows = take("y_rows[TK,H]", element_bytes(rows * shape.hidden));
    project("gathered down[TK,H,I]", weights_.down, *down_, act.data(), rows, y_rows.data());
    unpermute_rows(problem_.dtype, y_rows.data(), nullptr, topk_weights.as<float>(), tokens,
                   shape.top_k, shape.hidden, y.data, stream());
    context.record("combine", y.bytes(),
                   [] { return std::string("weights applied, fixed order"); });
  }

 private:
  std::optional<MemoryPool> pool_;
  std::optional<Matmul> gate_or_up_;
  std::optional<Matmul> down_;
};

}  // namespace

std::unique_ptr<Level> make_level01_batched() {
  return std::make_unique<Batched>();
}

}  // namespace moe::cuda
