// Level 01 · batched — gather each routed row's weights, then one batched product.
// Builds on 00.
// Changes   the loops over tokens and experts become one batched matrix-vector product over all
//           T·K routed rows, on all cores, with vector dot products. To make the batch uniform,
//           each routed row first receives its own copy of its expert's matrix, one at a time.
// Why       the arithmetic is now regular and parallel: no thread waits for another, no branch
//           depends on the routing.
//             FLOPs         6·T·K·H·I + 2·T·H·E, unchanged
//             weight bytes  3·T·K·H·I·b read and written by the gather, then read again by the
//                           product: three times the traffic of level 00, but on every core
// Costs     T·K·H·I·b of memory for each matrix in turn (T=256 K=2 H=1024 I=2048 fp32: 4 GiB), so
//           it runs out of memory where no other level does; the copy moves no useful data. All
//           buffers are allocated by forward itself, and the kernel zeroes their pages.
// Measured  docs/levels/level01_batched.md
//
//   route ─▶ gather gate ─▶ gate[TK,I] ┐
//            gather up   ─▶ up[TK,I]   ┴▶ swiglu ─▶ act[TK,I]
//         ─▶ gather down ─▶ y_rows[TK,H] ─▶ combine
#include "core/dispatch.h"
#include "core/expert_set.h"
#include "core/level.h"
#include "cpu/ops/activation.h"
#include "cpu/ops/batched_product.h"
#include "cpu/ops/gather.h"
#include "cpu/ops/router.h"
#include "cpu/ops/row_blocks.h"
#include "cpu/ops/transient.h"

namespace moe::cpu {
namespace {

class Batched final : public Level {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    const Shape shape = with_shared_slots(problem);
    const bool on_input = problem.router.weight_on_input;
    const std::int64_t sums = problem.activation.gated() ? 2 : 1;
    const auto bytes = [](std::int64_t count, std::size_t size) {
      return HostBuffer::footprint(static_cast<std::size_t>(count) * size);
    };
    const std::int64_t rows = shape.routed_rows();
    const std::size_t element = size_of(problem.dtype);
    return {.transient = bytes(shape.tokens * problem.shape.experts, sizeof(float)) +
                         (on_input ? 3 : 2) * bytes(rows, sizeof(float)) +
                         sums * bytes(rows * shape.intermediate, sizeof(float)) +
                         bytes(rows * shape.intermediate, element) +
                         bytes(rows * shape.hidden, sizeof(float)) +
                         bytes(rows * shape.intermediate * shape.hidden, element)};
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
  template <class Element>
  void run(Context& context, const TensorView& x, const TensorView& y) {
    const Shape& shape = shape_;
    const std::int64_t tokens = x.dim(0);
    const std::int64_t rows = tokens * shape.top_k;
    const auto floats = [](std::int64_t count) {
      return static_cast<std::uint64_t>(count) * sizeof(float);
    };

    const HostBuffer logits =
        allocate(context, "router_logits[T,E]", floats(tokens * problem_.shape.experts));
    const HostBuffer topk_idx = allocate(context, "topk_idx[T,K]", floats(rows));
    const HostBuffer topk_weights = allocate(context, "topk_weights[T,K]", floats(rows));
    const HostBuffer input_weights = problem_.router.weight_on_input
                                         ? allocate(context, "input_weights[T,K]", floats(rows))
                                         : HostBuffer();
    route(router_, x, 0, tokens, threads_, logits.as<float>(), context.routes,
          {topk_idx.as<std::int32_t>(), topk_weights.as<float>(), input_weights.as<float>()});
    context.record("route", floats(rows), [&] { return to_string(shape); });

    const bool gated = problem_.activation.gated();
    const HostBuffer gate =
        gated ? allocate(context, "gate[TK,I]", floats(rows * shape.intermediate)) : HostBuffer();
    const HostBuffer up = allocate(context, "up[TK,I]", floats(rows * shape.intermediate));
    const auto project = [&](const char* name, Matrix which, const Element* inputs,
                             std::int64_t inputs_per_token, float* out) {
      const bool down = which == Matrix::kDown;
      const std::int64_t outputs = down ? shape.hidden : shape.intermediate;
      const std::int64_t depth = down ? shape.intermediate : shape.hidden;
      const std::int64_t matrix = outputs * depth;
      const HostBuffer gathered =
          allocate(context, name, static_cast<std::uint64_t>(rows * matrix) * sizeof(Element));
      gather_weights(experts_, which, topk_idx.as<std::int32_t>(), rows, {0, outputs}, matrix,
                     gathered.data(), threads_);
      context.record("gather", gathered.size(), [&] { return std::string(name); });
      batched_product(*kernels_, gathered.as<const Element>(), inputs, rows, outputs, depth,
                      inputs_per_token, threads_, out);
      context.record("batched_product", floats(rows * outputs),
                     [&] { return fmt::format("{} x [{},{}]", rows, outputs, depth); });
    };
    if (gated) {
      project("gathered gate[TK,I,H]", Matrix::kGate, x.as<const Element>(), shape.top_k,
              gate.as<float>());
    }
    project("gathered up[TK,I,H]", Matrix::kUp, x.as<const Element>(), shape.top_k, up.as<float>());

    const HostBuffer act =
        allocate(context, "act[TK,I]",
                 static_cast<std::uint64_t>(rows * shape.intermediate) * sizeof(Element));
    const ActivationStep step = ActivationStep::of(problem_.activation);
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (std::int64_t row = 0; row < rows; ++row) {
      if (topk_idx.as<std::int32_t>()[row] < 0) continue;
      const ExpertMatrices expert = experts_.at(topk_idx.as<std::int32_t>()[row]);
      const float scale = input_weights.data() == nullptr ? 1.0F : input_weights.as<float>()[row];
      const auto value = [&](const HostBuffer& sums, const float* bias, std::int64_t i) {
        if (sums.data() == nullptr) return 0.0F;
        return scale * sums.as<float>()[row * shape.intermediate + i] +
               (bias != nullptr ? bias[i] : 0.0F);
      };
      for (std::int64_t i = 0; i < shape.intermediate; ++i) {
        act.as<Element>()[row * shape.intermediate + i] = from_float<Element>(
            activate(step, value(gate, expert.gate_bias, i), value(up, expert.up_bias, i)));
      }
    }
    context.record("activation", act.size(),
                   [&] { return fmt::format("{} elements", rows * shape.intermediate); });

    const HostBuffer y_rows = allocate(context, "y_rows[TK,H]", floats(rows * shape.hidden));
    project("gathered down[TK,H,I]", Matrix::kDown, act.as<const Element>(), 1, y_rows.as<float>());
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

std::unique_ptr<Level> make_level01_batched() {
  return std::make_unique<Batched>();
}

}  // namespace moe::cpu
