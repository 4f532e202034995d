// Level 05 · graphs — the whole forward recorded once as a CUDA graph and replayed.
// Builds on 04 (permute).
// Changes   nothing of a forward depends on what the host knows of the routing. The loop of library
//           GEMMs over experts becomes one launch whose blocks find their expert and rows in
//           expert_offsets, on the device; with that the wait of level 04 is gone, and router,
//           routing, permute, GEMMs, SwiGLU and combine are recorded into one graph, which the
//           host launches with one call. The routing may change between replays: the grid covers
//           its worst case, and what a routing does not need ends at once.
// Why       bytes and FLOPs are those of level 04:
//             weight bytes 3·E_hit·H·I·b     FLOPs 6·T·K·H·I + 2·T·H·E
//           What goes is time of the host: 2·E_hit + 6 launches and one round trip, a few
//           microseconds each, against 3·E_hit·H·I·b / R of the device. The fewer the tokens and the
//           smaller the experts, the more of a forward that is; at thousands of tokens it is nothing.
// Costs     the grouped GEMM is ours and made of mma.sync, which reaches less of the tensor cores
//           than the library's kernels for this GPU: where arithmetic is the limit this level is
//           slower than level 04. A graph belongs to addresses and a row count; it is recorded when they
//           come for the second time, which takes the host longer than a forward.
// Measured  docs/levels/level05_graphs.md
//
//   (x, y, T') the second time:  record  router ▸ route ▸ permute ▸ gate|up ▸ swiglu ▸ down ▸ combine
//   from then on:                one launch ──▶ the same kernels, each started while its predecessor drains
//   (replayed_level.h, which levels 7 to 9 share)
#include "cuda/ops/grouped_gemm_mma.h"
#include "cuda/ops/routed_buffers.h"
#include "cuda/ops/routed_steps.h"
#include "cuda/replayed_level.h"

namespace moe::cuda {
namespace {

class Graphs final : public ReplayedLevel {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem,
                                   const ExecutionOptions& execution) const override {
    ArenaPlan plan;
    static_cast<void>(carve(plan, problem, device_of(execution).facts()));
    return {.workspace = plan.bytes(),
            .prepared = kBasePrepared + gate_up_bytes(problem) +
                        shared_down_bytes(problem, StoredWidths::of(problem)) + kGraphsPrepared};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    keep_launch(execution);
    steps_ = RoutedSteps(problem, weights);
    packed_ = pack_gate_up(problem, weights, stream());
    shared_down_ = pack_shared_down(problem, weights, StoredWidths::of(problem), stream());
  }

  [[nodiscard]] std::string plan() const override {
    return fmt::format("{}, {}", describe_tiles(problem_.shape.tokens), CudaLevel::plan());
  }

 private:
  template <class Memory>
  static RoutedBuffers carve(Memory& memory, const Problem& problem, const DeviceFacts& facts) {
    return carve_routed_buffers(memory, problem, facts, StoredWidths::of(problem));
  }
  [[nodiscard]] std::int64_t gate_up_columns() const {
    return matrices_before_activation(problem_) * problem_.shape.intermediate;
  }

  [[nodiscard]] GroupedGemmTile tile_for(std::int64_t tokens, std::int64_t n) const {
    return choose_grouped_gemm_tile(problem_.dtype, tokens * routed_.top_k, routed_.experts, n,
                                    device_->facts().multiprocessors);
  }
  [[nodiscard]] std::string describe_tiles(std::int64_t tokens) const {
    const GroupedGemmTile gate_up = tile_for(tokens, gate_up_columns());
    const GroupedGemmTile down = tile_for(tokens, problem_.shape.hidden);
    return fmt::format("gate|up in tiles of {} rows x {} columns, down {} x {}", gate_up.rows,
                       gate_up.columns, down.rows, down.columns);
  }

  void queue(Context& context, const TensorView& x, const TensorView& y) override {
    const RoutedBuffers b = carve(context.arena, problem_, device_->facts());
    const Shape& shape = routed_;
    const std::int64_t tokens = x.dim(0);
    const std::int64_t rows = tokens * shape.top_k;
    const std::int64_t intermediate = shape.intermediate;

    route(context, x, 0, tokens, routing_of(b));
    steps_.permute(x.data, tokens, b, stream());
    context.record("permute", element_bytes(rows * shape.hidden),
                   [&] { return fmt::format("{} rows by expert", rows); });

    GroupedGemm gemm{.a = b.rows,
                     .a_stride = shape.hidden,
                     .w = packed_.data(),
                     .c = b.gate_up,
                     .c_stride = gate_up_columns(),
                     .expert_offsets = b.permutation.expert_offsets,
                     .experts = shape.experts,
                     .rows = rows,
                     .n = gate_up_columns(),
                     .k = shape.hidden,
                     .weights_first = true};  // the kernel before copies rows
    const auto multiply = [&] {
      const GroupedGemmTile tile = tile_for(tokens, gemm.n);
      grouped_gemm_mma(problem_.dtype, gemm, tile, stream());
      context.record("grouped_gemm", element_bytes(rows * gemm.n), [&] {
        return fmt::format("all experts, n={} k={}, tiles of {} rows x {} columns", gemm.n, gemm.k,
                           tile.rows, tile.columns);
      });
    };
    multiply();
    steps_.activate(b, 0, rows, stream());
    context.record("activation", element_bytes(rows * intermediate),
                   [&] { return fmt::format("{} rows x {} columns", rows, intermediate); });
    gemm.a = b.gate_up;
    gemm.a_stride = gate_up_columns();
    gemm.w = weights_.down.data;
    gemm.shared_w = shared_down_.data();
    gemm.shared_first = problem_.shape.experts;
    gemm.c = b.rows;
    gemm.c_stride = shape.hidden;
    gemm.n = shape.hidden;
    gemm.k = intermediate;
    multiply();
    steps_.combine(b, tokens, y.data, stream());
    context.record("unpermute", y.bytes(), [&] {
      return fmt::format("{} tokens, weighted sum of {} rows", tokens, shape.top_k);
    });
  }

  RoutedSteps steps_;
  DeviceBuffer packed_;       // [E',M·I,H]
  DeviceBuffer shared_down_;  // [P,H,I]
};

}  // namespace

std::unique_ptr<Level> make_level05_graphs() {
  return std::make_unique<Graphs>();
}

}  // namespace moe::cuda
