// Level 02 · fused — SiLU(gate)·up inside the product that makes gate and up.
// Builds on 01.
// Changes   "gate product, up product, SiLU, multiply" become one kernel of ours: a warp multiplies
//           rows of the gate and of the up matrix with x at once and applies the activation to the
//           sums while they are in registers.
// Why       gate[TK,I], up[TK,I] and silu[TK,I] are never stored, and x is read once for both:
//             activation bytes   01: 7·b·TK·I    02: b·TK·I
//           FLOPs and weight bytes are unchanged.
// Costs     gate and up weights are needed together, so the gather takes both, half of the I rows at
//           a time: the buffer stays at T·K·H·I·b. The gather itself, the larger part of the time,
//           is untouched: a fusion of activations alone cannot help much.
// Measured  docs/levels/level02_fused.md
//
//   route ─▶ 2 × { gather gate|up rows [TK,2,I/2,H] ─▶ product + swiglu ─▶ act[TK,I/2] }
//         ─▶ gather down ─▶ y_rows[TK,H] ─▶ combine
#include <algorithm>

#include "cuda/level_base.h"
#include "cuda/ops/expert_matrices.h"
#include "cuda/ops/gather.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/row_products.h"
#include "cuda/ops/transient.h"

namespace moe::cuda {
namespace {

/// The I rows are gathered in this many parts, so that gate and up together take one matrix's room.
constexpr std::int64_t kParts = 2;

class Fused final : public CudaLevel {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    const Shape shape = with_shared_slots(problem);
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return TransientBuffer::footprint(static_cast<std::uint64_t>(count) * size);
    };
    const std::int64_t rows = shape.routed_rows();
    const std::size_t element = size_of(problem.dtype);
    return {.transient = routing_footprint(problem) + bytes(rows * shape.intermediate, element) +
                         bytes(rows * shape.hidden, element) +
                         bytes(rows * gathered_rows(shape) * shape.hidden, element),
            .prepared = kBasePrepared + ExpertMatrixSet::bytes(problem)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    const Shape& shape = problem.shape;
    experts_ = ExpertMatrixSet(problem, weights, stream());
    pool_.emplace(*device_);
    down_.emplace(*library_, MatmulSpec{.n = shape.hidden,
                                        .k = shape.intermediate,
                                        .in = problem.dtype,
                                        .out = problem.dtype,
                                        .batch_stride_w = shape.hidden * shape.intermediate,
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
    // NOTE: one place for both copies, taken first: see level 01.
    const TransientBuffer gathered = take(
        "gathered matrices[TK,2,I/2,H]", element_bytes(rows * gathered_rows(shape) * shape.hidden));
    const TransientRouting routing = take_routing(context, *pool_, tokens);
    route(context, x, 0, tokens, routing.views());
    const auto* const topk_idx = routing.topk_idx.as<std::int32_t>();
    const float* const topk_weights = routing.topk_weights.as<float>();

    const TransientBuffer act = take("act[TK,I]", element_bytes(rows * shape.intermediate));
    const TransientBuffer y_rows = take("y_rows[TK,H]", element_bytes(rows * shape.hidden));
    const std::int64_t part = (shape.intermediate + kParts - 1) / kParts;
    for (std::int64_t first = 0; first < shape.intermediate; first += part) {
      gate_up_part(context, topk_idx, topk_weights, x, rows,
                   {first, std::min(part, shape.intermediate - first), shape.hidden}, gathered,
                   act);
    }

    const std::int64_t matrix = shape.hidden * shape.intermediate;
    gather_weights(problem_.dtype, experts_.down, topk_idx, rows,
                   {0, shape.hidden, shape.intermediate}, matrix, gathered.data(), stream());
    context.record("gather", element_bytes(rows * matrix),
                   [] { return std::string("gathered down[TK,H,I]"); });
    down_->run(act.data(), gathered.data(), y_rows.data(), 1, stream(), rows);
    context.record("batched_product", element_bytes(rows * shape.hidden), [&] {
      return fmt::format("{} x [{},{}]", rows, shape.hidden, shape.intermediate);
    });
    combine_slots_of(y_rows.data(), topk_idx, topk_weights, tokens, y.data, stream());
    context.record("combine", y.bytes(),
                   [] { return std::string("weights applied, fixed order"); });
  }

 private:
  /// Matrix rows per routed row in the larger of the two gathers: gate|up, when an odd I rounds up.
  static std::int64_t gathered_rows(const Shape& shape) {
    return 2 * ((shape.intermediate + kParts - 1) / kParts);
  }

  void gate_up_part(Context& context, const std::int32_t* topk_idx, const float* topk_weights,
                    const TensorView& x, std::int64_t rows, RowSlice slice,
                    const TransientBuffer& gathered, const TransientBuffer& act) {
    const Shape& shape = routed_;
    const std::int64_t matrices = matrices_before_activation(problem_);
    const std::int64_t part = slice.count * shape.hidden;
    std::byte* const up = gathered.as<std::byte>() + element_bytes((matrices - 1) * part);
    if (problem_.activation.gated()) {
      gather_weights(problem_.dtype, experts_.gate, topk_idx, rows, slice, matrices * part,
                     gathered.data(), stream());
    }
    gather_weights(problem_.dtype, experts_.up, topk_idx, rows, slice, matrices * part, up,
                   stream());
    context.record("gather", element_bytes(rows * matrices * part), [&] {
      return fmt::format("rows {}..{} of {} matrices", slice.first, slice.first + slice.count,
                         matrices);
    });
    RowExtras extras = row_extras(topk_idx, topk_weights);
    if (extras.gate_bias != nullptr) extras.gate_bias += slice.first;
    if (extras.up_bias != nullptr) extras.up_bias += slice.first;
    product_activation(problem_.dtype, problem_.activation,
                       {{.data = gathered.data(), .stride = matrices * part}},
                       {{.data = up, .stride = matrices * part}}, x.data, rows, shape.top_k,
                       slice.count, shape.hidden, act.as<std::byte>() + element_bytes(slice.first),
                       shape.intermediate, stream(), extras);
    context.record("batched_product_activation", element_bytes(rows * slice.count), [&] {
      return fmt::format("{} x {} x [{},{}]", rows, matrices, slice.count, shape.hidden);
    });
  }

  ExpertMatrixSet experts_;
  std::optional<MemoryPool> pool_;
  std::optional<Matmul> down_;
};

}  // namespace

std::unique_ptr<Level> make_level02_fused() {
  return std::make_unique<Fused>();
}

}  // namespace moe::cuda
