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
#include "core/expert_set.h"
#include "core/level.h"
#include "cpu/ops/activation.h"
#include "cpu/ops/batched_product.h"
#include "cpu/ops/gather.h"
#include "cpu/ops/router.h"
#include "cpu/ops/transient.h"

namespace moe::cpu {
namespace {

/// The I rows are gathered in this many parts, so that gate and up together take one matrix's room.
constexpr std::int64_t kParts = 2;

/// Routed rows and what their experts do to them.
struct RoutedRows {
  const ExpertSet* experts = nullptr;
  const std::int32_t* topk_idx = nullptr;
  const float* input_weights = nullptr;  // null: 1
  std::int64_t count = 0;
  std::int64_t per_input = 0;
};

/// act[r, slice] = f(gate rows · x, up rows · x). gathered[rows, 2, slice.count, hidden] holds
/// the gate slice, then the up slice (without a gate matrix that alone); act[rows, intermediate].
template <class Element>
void product_with_activation(const Kernels& kernels, const Element* gathered, const Element* x,
                             const RoutedRows& rows, RowSlice slice, int threads, Element* act) {
  const Problem& problem = rows.experts->problem();
  const ActivationStep step = ActivationStep::of(problem.activation);
  const bool gated = problem.activation.gated();
  const std::int64_t hidden = problem.shape.hidden;
  const std::int64_t intermediate = problem.shape.intermediate;
  for_each_row_block(
      rows.count, slice.count, threads,
      [&](std::int64_t row, std::int64_t first, std::int64_t end) {
        if (rows.topk_idx[row] < 0) return;
        const ExpertMatrices expert = rows.experts->at(rows.topk_idx[row]);
        const float scale = rows.input_weights == nullptr ? 1.0F : rows.input_weights[row];
        const Element* gate = gathered + row * (gated ? 2 : 1) * slice.count * hidden;
        const Element* up = gate + (gated ? slice.count * hidden : 0);
        const Element* input = x + row / rows.per_input * hidden;
        const auto project = [&](const Element* matrix, const float* bias, std::int64_t i) {
          return scale * dot<Element>(kernels, matrix + i * hidden, input, hidden) +
                 (bias != nullptr ? bias[slice.first + i] : 0.0F);
        };
        for (std::int64_t i = first; i < end; ++i) {
          const float g = gated ? project(gate, expert.gate_bias, i) : 0.0F;
          const float u = project(up, expert.up_bias, i);
          act[row * intermediate + slice.first + i] = from_float<Element>(activate(step, g, u));
        }
      });
}

class Fused final : public Level {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    const Shape shape = with_shared_slots(problem);
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return HostBuffer::footprint(static_cast<std::size_t>(count) * size);
    };
    const std::int64_t rows = shape.routed_rows();
    const std::size_t element = size_of(problem.dtype);
    return {.transient = bytes(shape.tokens * problem.shape.experts, sizeof(float)) +
                         (problem.router.weight_on_input ? 3 : 2) * bytes(rows, sizeof(float)) +
                         bytes(rows * shape.intermediate, element) +
                         bytes(rows * shape.hidden, sizeof(float)) +
                         std::max(bytes(rows * gathered_rows(problem) * shape.hidden, element),
                                  bytes(rows * shape.intermediate * shape.hidden, element))};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    problem_ = problem;
    shape_ = with_shared_slots(problem);
    threads_ = execution.threads;
    kernels_ = &kernels_for(parse_isa(execution.isa));
    router_ = {kernels_, problem, weights};
    experts_ = ExpertSet(problem, weights);
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    with_element_type(problem_.dtype, [&]<class Element>() { run<Element>(context, x, y); });
  }

  [[nodiscard]] std::string isa() const override {
    return std::string(name_of(kernels_->used_for(problem_.dtype)));
  }
  [[nodiscard]] int threads() const override { return threads_; }

 private:
  /// Matrix rows per routed row in the gather of gate|up (more than I when an odd I rounds up) or up.
  static std::int64_t gathered_rows(const Problem& problem) {
    return (problem.activation.gated() ? 2 : 1) *
           ((problem.shape.intermediate + kParts - 1) / kParts);
  }

  template <class Element>
  void run(Context& context, const TensorView& x, const TensorView& y) {
    const Shape& shape = shape_;
    const std::int64_t tokens = x.dim(0);
    const std::int64_t rows = tokens * shape.top_k;
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return static_cast<std::uint64_t>(count) * size;
    };

    const HostBuffer logits = allocate(context, "router_logits[T,E]",
                                       bytes(tokens * problem_.shape.experts, sizeof(float)));
    const HostBuffer topk_idx =
        allocate(context, "topk_idx[T,K]", bytes(rows, sizeof(std::int32_t)));
    const HostBuffer topk_weights =
        allocate(context, "topk_weights[T,K]", bytes(rows, sizeof(float)));
    const HostBuffer input_weights =
        problem_.router.weight_on_input
            ? allocate(context, "input_weights[T,K]", bytes(rows, sizeof(float)))
            : HostBuffer();
    route(router_, x, 0, tokens, threads_, logits.as<float>(), context.routes,
          {topk_idx.as<std::int32_t>(), topk_weights.as<float>(), input_weights.as<float>()});
    context.record("route", bytes(rows, sizeof(float)), [&] { return to_string(shape); });

    const HostBuffer act =
        allocate(context, "act[TK,I]", bytes(rows * shape.intermediate, sizeof(Element)));
    {
      const std::int64_t part = (shape.intermediate + kParts - 1) / kParts;
      const std::int64_t matrices = problem_.activation.gated() ? 2 : 1;
      const HostBuffer gathered =
          allocate(context, "gathered gate|up[TK,2,I/2,H]",
                   bytes(rows * matrices * part * shape.hidden, sizeof(Element)));
      const RoutedRows routed{&experts_, topk_idx.as<std::int32_t>(), input_weights.as<float>(),
                              rows, shape.top_k};
      for (std::int64_t first = 0; first < shape.intermediate; first += part) {
        const RowSlice slice{first, std::min(part, shape.intermediate - first)};
        const std::int64_t half = slice.count * shape.hidden;
        if (matrices == 2) {
          gather_weights(experts_, Matrix::kGate, routed.topk_idx, rows, slice, 2 * half,
                         gathered.data(), threads_);
        }
        gather_weights(experts_, Matrix::kUp, routed.topk_idx, rows, slice, matrices * half,
                       gathered.as<Element>() + (matrices - 1) * half, threads_);
        context.record("gather", bytes(rows * matrices * half, sizeof(Element)), [&] {
          return fmt::format("{} rows {}..{}", matrices == 2 ? "gate and up" : "up", slice.first,
                             slice.first + slice.count);
        });
        product_with_activation(*kernels_, gathered.as<const Element>(), x.as<const Element>(),
                                routed, slice, threads_, act.as<Element>());
        context.record("batched_product_act", bytes(rows * slice.count, sizeof(Element)), [&] {
          return fmt::format("{} x {} x [{},{}]", rows, matrices, slice.count, shape.hidden);
        });
      }
    }

    const HostBuffer y_rows =
        allocate(context, "y_rows[TK,H]", bytes(rows * shape.hidden, sizeof(float)));
    {
      const std::int64_t matrix = shape.hidden * shape.intermediate;
      const HostBuffer gathered =
          allocate(context, "gathered down[TK,H,I]", bytes(rows * matrix, sizeof(Element)));
      gather_weights(experts_, Matrix::kDown, topk_idx.as<std::int32_t>(), rows, {0, shape.hidden},
                     matrix, gathered.data(), threads_);
      context.record("gather", gathered.size(),
                     [&] { return std::string("gathered down[TK,H,I]"); });
      batched_product(*kernels_, gathered.as<const Element>(), act.as<const Element>(), rows,
                      shape.hidden, shape.intermediate, 1, threads_, y_rows.as<float>());
      context.record("batched_product", y_rows.size(), [&] {
        return fmt::format("{} x [{},{}]", rows, shape.hidden, shape.intermediate);
      });
    }
    combine_rows(experts_, y_rows.as<float>(), topk_idx.as<std::int32_t>(),
                 topk_weights.as<float>(), tokens, shape.top_k, shape.hidden, threads_,
                 y.as<Element>());
    context.record("combine", y.bytes(),
                   [&] { return std::string("weights applied, fixed order"); });
  }

  Problem problem_;
  Shape shape_;  // with the shared expert's parts
  RouterSetup router_;
  ExpertSet experts_;
  const Kernels* kernels_ = nullptr;
  int threads_ = 1;
};

}  // namespace

std::unique_ptr<Level> make_level02_fused() {
  return std::make_unique<Fused>();
}

}  // namespace moe::cpu
