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
#include "cuda/ops/activation.h"
#include "cuda/ops/expert_matrices.h"
#include "cuda/ops/gather.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/swiglu.h"
#include "cuda/ops/transient.h"

namespace moe::cuda {
namespace {

class Batched final : public CudaLevel {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    const Shape shape = with_shared_slots(problem);
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return TransientBuffer::footprint(static_cast<std::uint64_t>(count) * size);
    };
    const std::int64_t rows = shape.routed_rows();
    const std::size_t element = size_of(problem.dtype);
    return {.transient = routing_footprint(problem) +
                         4 * bytes(rows * shape.intermediate, element) +
                         bytes(rows * shape.hidden, element) +
                         bytes(rows * shape.intermediate * shape.hidden, element),
            .prepared = kBasePrepared + ExpertMatrixSet::bytes(problem)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    const Shape& shape = routed_;
    const std::int64_t matrix = shape.intermediate * shape.hidden;
    experts_ = ExpertMatrixSet(problem, weights, stream());
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
    const Shape& shape = routed_;
    const std::int64_t tokens = x.dim(0);
    const std::int64_t rows = tokens * shape.top_k;
    const auto take = [&](const char* what, std::uint64_t bytes) {
      return allocate(context, *pool_, what, bytes);
    };
    // NOTE: one place for the three copies in turn, taken before all else. Taken and freed
    // three times, it left the pool with two places of that size, because smaller buffers came to lie in
    // the first one.
    const TransientBuffer gathered =
        take("gathered matrices[TK,I,H]", element_bytes(rows * shape.intermediate * shape.hidden));
    const TransientRouting routing = take_routing(context, *pool_, tokens);
    route(context, x, 0, tokens, routing.views());
    const auto* const topk_idx = routing.topk_idx.as<std::int32_t>();
    const float* const topk_weights = routing.topk_weights.as<float>();

    const auto project = [&](const char* name, const MatrixByExpert& weights, std::int64_t height,
                             std::int64_t width, Matmul& product, const void* inputs,
                             std::int64_t batch, void* out) {
      const std::int64_t matrix = height * width;
      gather_weights(problem_.dtype, weights, topk_idx, rows, {0, height, width}, matrix,
                     gathered.data(), stream());
      context.record("gather", element_bytes(rows * matrix), [&] { return std::string(name); });
      product.run(inputs, gathered.data(), out, 1, stream(), batch);
      context.record("batched_product", element_bytes(rows * height),
                     [&] { return fmt::format("{} x [{},{}]", rows, height, width); });
    };
    const std::uint64_t inner = element_bytes(rows * shape.intermediate);
    const bool gated = problem_.activation.gated();
    const bool plain = plain_activation();
    const TransientBuffer gate = gated ? take("gate[TK,I]", inner) : TransientBuffer();
    const TransientBuffer up = take("up[TK,I]", inner);
    const TransientBuffer activated = plain ? take("silu[TK,I]", inner) : TransientBuffer();
    const TransientBuffer act = take("act[TK,I]", inner);
    if (gated) {
      project("gathered gate[TK,I,H]", experts_.gate, shape.intermediate, shape.hidden,
              *gate_or_up_, x.data, tokens, gate.data());
    }
    project("gathered up[TK,I,H]", experts_.up, shape.intermediate, shape.hidden, *gate_or_up_,
            x.data, tokens, up.data());
    const auto elements = [&] { return fmt::format("{} elements", rows * shape.intermediate); };
    if (plain) {
      silu(problem_.dtype, gate.data(), rows * shape.intermediate, activated.data(), stream());
      context.record("silu", inner, elements);
      multiply(problem_.dtype, activated.data(), up.data(), rows * shape.intermediate, act.data(),
               stream());
      context.record("multiply", inner, elements);
    } else {
      activate_slots(problem_, weights_,
                     {.dtype = problem_.dtype,
                      .gate = gate.data(),
                      .up = up.data(),
                      .rows = rows,
                      .columns = shape.intermediate,
                      .act = act.data(),
                      .experts = topk_idx,
                      .weights = problem_.router.weight_on_input ? topk_weights : nullptr},
                     stream());
      context.record("activation", inner, elements);
    }

    const TransientBuffer y_rows = take("y_rows[TK,H]", element_bytes(rows * shape.hidden));
    project("gathered down[TK,H,I]", experts_.down, shape.hidden, shape.intermediate, *down_,
            act.data(), rows, y_rows.data());
    combine_slots_of(y_rows.data(), topk_idx, topk_weights, tokens, y.data, stream());
    context.record("combine", y.bytes(),
                   [] { return std::string("weights applied, fixed order"); });
  }

 private:
  ExpertMatrixSet experts_;
  std::optional<MemoryPool> pool_;
  std::optional<Matmul> gate_or_up_;
  std::optional<Matmul> down_;
};

}  // namespace

std::unique_ptr<Level> make_level01_batched() {
  return std::make_unique<Batched>();
}

}  // namespace moe::cuda
