// Level 02 · fused — SiLU(gate)·up in the same pass that produces gate and up.
// Builds on 01.
// Changes   the three passes "gate product, up product, activation" become one: a row of the gate
//           and the same row of the up matrix are multiplied with x one after the other, and the
//           activation is applied to the two sums while they are in registers.
// Why       gate[TK,I] and up[TK,I] are never stored, and act is written once:
//             activation bytes   01: 2·4·TK·I written + 2·4·TK·I read + b·TK·I written
//                                02: b·TK·I written
//           x[H] is read once for two dot products. FLOPs are unchanged.
// Costs     gate and up weights are needed together, so the gather takes both, half of the I rows
//           at a time: the buffer stays at T·K·H·I·b, the same as level 01. The gather itself, the
//           larger part of the time, is untouched: fusing activations alone cannot help much.
// Measured  docs/levels/level02_fused.md
//
//   route ─▶ 2 × { gather gate|up rows [TK,2,I/2,H] ─▶ product + swiglu ─▶ act[TK,I/2] }
//         ─▶ gather down ─▶ y_rows[TK,H] ─▶ combine
#include <algorithm>

#include "core/dispatch.h"
#include "core/level.h"
#include "cpu/ops/batched_product.h"
#include "cpu/ops/gather.h"
#include "cpu/ops/router.h"
#include "cpu/ops/swiglu.h"
#include "cpu/ops/transient.h"

namespace moe::cpu {
namespace {

/// The I rows are gathered in this many parts, so that gate and up together take one matrix's room.
constexpr std::int64_t kParts = 2;

/// act[r, slice] = swiglu(gate rows · x, up rows · x). gathered[rows, 2, slice.count, hidden] holds
/// the gate slice, then the up slice; act[rows, intermediate].
template <class Element>
void product_with_swiglu(const Kernels& kernels, const Element* gathered, const Element* x,
                         std::int64_t rows, RowSlice slice, std::int64_t hidden,
                         std::int64_t intermediate, std::int64_t rows_per_input, int threads,
                         Element* act) {
  for_each_row_block(
      rows, slice.count, threads, [&](std::int64_t row, std::int64_t first, std::int64_t end) {
        const Element* gate = gathered + row * 2 * slice.count * hidden;
        const Element* up = gate + slice.count * hidden;
        const Element* input = x + row / rows_per_input * hidden;
        for (std::int64_t i = first; i < end; ++i) {
          const float g = dot<Element>(kernels, gate + i * hidden, input, hidden);
          const float u = dot<Element>(kernels, up + i * hidden, input, hidden);
          act[row * intermediate + slice.first + i] = from_float<Element>(swiglu(g, u));
        }
      });
}

class Fused final : public Level {
 public:
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    const Shape& shape = problem.shape;
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return HostBuffer::footprint(static_cast<std::size_t>(count) * size);
    };
    const std::int64_t rows = shape.routed_rows();
    const std::size_t element = size_of(problem.dtype);
    return {.transient = bytes(shape.tokens * shape.experts, sizeof(float)) +
                         2 * bytes(rows, sizeof(float)) +
                         bytes(rows * shape.intermediate, element) +
                         bytes(rows * shape.hidden, sizeof(float)) +
                         bytes(rows * gathered_rows(shape) * shape.hidden, element)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    problem_ = problem;
    weights_ = weights;
    threads_ = execution.threads;
    kernels_ = &kernels_for(parse_isa(execution.isa));
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    with_element_type(problem_.dtype, [&]<class Element>() { run<Element>(context, x, y); });
  }

  [[nodiscard]] std::string isa() const override {
    return std::string(name_of(kernels_->used_for(problem_.dtype)));
  }
  [[nodiscard]] int threads() const override { return threads_; }

 private:
  /// Matrix rows per routed row in the larger of the two gathers: gate|up, when an odd I rounds up.
  static std::int64_t gathered_rows(const Shape& shape) {
    return 2 * ((shape.intermediate + kParts - 1) / kParts);
  }

  template <class Element>
  void run(Context& context, const TensorView& x, const TensorView& y) {
    const Shape& shape = problem_.shape;
    const std::int64_t tokens = x.dim(0);
    const std::int64_t rows = tokens * shape.top_k;
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return static_cast<std::uint64_t>(count) * size;
    };

    const HostBuffer logits =
        allocate(context, "router_logits[T,E]", bytes(tokens * shape.experts, sizeof(float)));
    const HostBuffer topk_idx =
        allocate(context, "topk_idx[T,K]", bytes(rows, sizeof(std::int32_t)));
    const HostBuffer topk_weights =
        allocate(context, "topk_weights[T,K]", bytes(rows, sizeof(float)));
    route(*kernels_, x, weights_.router, shape.top_k, 0, tokens, threads_, logits.as<float>(),
          topk_idx.as<std::int32_t>(), topk_weights.as<float>());
    context.record("route", bytes(rows, sizeof(float)), [&] { return to_string(shape); });

    const HostBuffer act =
        allocate(context, "act[TK,I]", bytes(rows * shape.intermediate, sizeof(Element)));
    {
      const std::int64_t part = (shape.intermediate + kParts - 1) / kParts;
      const HostBuffer gathered = allocate(context, "gathered gate|up[TK,2,I/2,H]",
                                           bytes(rows * 2 * part * shape.hidden, sizeof(Element)));
      for (std::int64_t first = 0; first < shape.intermediate; first += part) {
        const RowSlice slice{first, std::min(part, shape.intermediate - first)};
        const std::int64_t half = slice.count * shape.hidden;
        gather_weights(weights_.gate, topk_idx.as<std::int32_t>(), rows, slice, 2 * half,
                       gathered.data(), threads_);
        gather_weights(weights_.up, topk_idx.as<std::int32_t>(), rows, slice, 2 * half,
                       gathered.as<Element>() + half, threads_);
        context.record("gather", bytes(rows * 2 * half, sizeof(Element)), [&] {
          return fmt::format("gate and up rows {}..{}", slice.first, slice.first + slice.count);
        });
        product_with_swiglu(*kernels_, gathered.as<const Element>(), x.as<const Element>(), rows,
                            slice, shape.hidden, shape.intermediate, shape.top_k, threads_,
                            act.as<Element>());
        context.record("batched_product_swiglu", bytes(rows * slice.count, sizeof(Element)), [&] {
          return fmt::format("{} x 2 x [{},{}]", rows, slice.count, shape.hidden);
        });
      }
    }

    const HostBuffer y_rows =
        allocate(context, "y_rows[TK,H]", bytes(rows * shape.hidden, sizeof(float)));
    {
      const std::int64_t matrix = shape.hidden * shape.intermediate;
      const HostBuffer gathered =
          allocate(context, "gathered down[TK,H,I]", bytes(rows * matrix, sizeof(Element)));
      gather_weights(weights_.down, topk_idx.as<std::int32_t>(), rows, {0, shape.hidden}, matrix,
                     gathered.data(), threads_);
      context.record("gather", gathered.size(),
                     [&] { return std::string("gathered down[TK,H,I]"); });
      batched_product(*kernels_, gathered.as<const Element>(), act.as<const Element>(), rows,
                      shape.hidden, shape.intermediate, 1, threads_, y_rows.as<float>());
      context.record("batched_product", y_rows.size(), [&] {
        return fmt::format("{} x [{},{}]", rows, shape.hidden, shape.intermediate);
      });
    }
    combine_rows(y_rows.as<float>(), topk_weights.as<float>(), tokens, shape.top_k, shape.hidden,
                 threads_, y.as<Element>());
    context.record("combine", y.bytes(),
                   [&] { return std::string("weights applied, fixed order"); });
  }

  Problem problem_;
  Weights weights_;
  const Kernels* kernels_ = nullptr;
  int threads_ = 1;
};

}  // namespace

std::unique_ptr<Level> make_level02_fused() {
  return std::make_unique<Fused>();
}

}  // namespace moe::cpu
