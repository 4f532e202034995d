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
#include "core/level.h"
#include "cpu/ops/batched_product.h"
#include "cpu/ops/gather.h"
#include "cpu/ops/router.h"
#include "cpu/ops/row_blocks.h"
#include "cpu/ops/swiglu.h"
#include "cpu/ops/transient.h"

namespace moe::cpu {
namespace {

class Batched final : public Level {
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
                         2 * bytes(rows * shape.intermediate, sizeof(float)) +
                         bytes(rows * shape.intermediate, element) +
                         bytes(rows * shape.hidden, sizeof(float)) +
                         bytes(rows * shape.intermediate * shape.hidden, element)};
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
  template <class Element>
  void run(Context& context, const TensorView& x, const TensorView& y) {
    const Shape& shape = problem_.shape;
    const std::int64_t tokens = x.dim(0);
    const std::int64_t rows = tokens * shape.top_k;
    const auto floats = [](std::int64_t count) {
      return static_cast<std::uint64_t>(count) * sizeof(float);
    };

    const HostBuffer logits =
        allocate(context, "router_logits[T,E]", floats(tokens * shape.experts));
    const HostBuffer topk_idx = allocate(context, "topk_idx[T,K]", floats(rows));
    const HostBuffer topk_weights = allocate(context, "topk_weights[T,K]", floats(rows));
    route(*kernels_, x, weights_.router, shape.top_k, 0, tokens, threads_, logits.as<float>(),
          topk_idx.as<std::int32_t>(), topk_weights.as<float>());
    context.record("route", floats(rows), [&] { return to_string(shape); });

    const HostBuffer gate = allocate(context, "gate[TK,I]", floats(rows * shape.intermediate));
    const HostBuffer up = allocate(context, "up[TK,I]", floats(rows * shape.intermediate));
    const auto project = [&](const char* name, const TensorView& weights, const Element* inputs,
                             std::int64_t inputs_per_token, float* out) {
      const std::int64_t matrix = weights.dim(1) * weights.dim(2);
      const HostBuffer gathered =
          allocate(context, name, static_cast<std::uint64_t>(rows * matrix) * sizeof(Element));
      gather_weights(weights, topk_idx.as<std::int32_t>(), rows, {0, weights.dim(1)}, matrix,
                     gathered.data(), threads_);
      context.record("gather", gathered.size(), [&] { return std::string(name); });
      batched_product(*kernels_, gathered.as<const Element>(), inputs, rows, weights.dim(1),
                      weights.dim(2), inputs_per_token, threads_, out);
      context.record("batched_product", floats(rows * weights.dim(1)), [&] {
        return fmt::format("{} x [{},{}]", rows, weights.dim(1), weights.dim(2));
      });
    };
    project("gathered gate[TK,I,H]", weights_.gate, x.as<const Element>(), shape.top_k,
            gate.as<float>());
    project("gathered up[TK,I,H]", weights_.up, x.as<const Element>(), shape.top_k, up.as<float>());

    const HostBuffer act =
        allocate(context, "act[TK,I]",
                 static_cast<std::uint64_t>(rows * shape.intermediate) * sizeof(Element));
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (std::int64_t i = 0; i < rows * shape.intermediate; ++i) {
      act.as<Element>()[i] = from_float<Element>(swiglu(gate.as<float>()[i], up.as<float>()[i]));
    }
    context.record("swiglu", act.size(),
                   [&] { return fmt::format("{} elements", rows * shape.intermediate); });

    const HostBuffer y_rows = allocate(context, "y_rows[TK,H]", floats(rows * shape.hidden));
    project("gathered down[TK,H,I]", weights_.down, act.as<const Element>(), 1, y_rows.as<float>());
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

std::unique_ptr<Level> make_level01_batched() {
  return std::make_unique<Batched>();
}

}  // namespace moe::cpu
