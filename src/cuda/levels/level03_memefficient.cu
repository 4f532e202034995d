// Level 03 · memefficient — weights read in place, a small arena, no allocation in forward.
// Builds on 02.
// Changes   the gather is gone: a routed row multiplies with its expert's matrices where they lie.
//           Tokens pass through in chunks of kChunkTokens, all scratch memory comes from an arena
//           that was allocated once, and the weighted sum over the K experts is taken as the down
//           products are made, so y_rows does not exist either. SwiGLU stays fused (level 02).
// Why       nothing that can be streamed is stored:
//             weight bytes    02: 3·T·K·H·I·b read, written, read again    03: 3·T·K·H·I·b read
//             scratch bytes   02: T·K·H·I·b                   03: C·(E·4 + K·(8 + I·b))
//           with C = min(T, kChunkTokens), so it runs at any T. Neighbouring blocks take the same
//           columns of all rows, so that rows of one expert find its weights in L2.
// Costs     every routed row still reads all of its expert's weights, at best from L2, and a
//           matrix-vector product does 2 FLOPs a weight: the tensor cores stay idle. Level 04 reads
//           a weight once for all rows of its expert.
// Measured  docs/levels/level03_memefficient.md
//
//   for each chunk:  route ─▶ act[C·K,I] = swiglu(gate_e·x, up_e·x) ─▶ y[t] = Σ_k w_k·(down_e·act)
#include <algorithm>

#include "cuda/level_base.h"
#include "cuda/ops/expert_matrices.h"
#include "cuda/ops/row_products.h"

namespace moe::cuda {
namespace {

/// Enough routed rows that one chunk fills the device many times over, few enough that act stays in
/// L2 for the down projection (at the lab's shape 1024 rows x 2048 columns of bf16: 4 MiB).
constexpr std::int64_t kChunkTokens = 512;

class MemEfficient final : public CudaLevel {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    ArenaPlan plan;
    static_cast<void>(carve(plan, problem));
    return {.workspace = plan.bytes(), .prepared = kBasePrepared + ExpertMatrixSet::bytes(problem)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    experts_ = ExpertMatrixSet(problem, weights, stream());
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const Scratch scratch = carve(context.arena, problem_);
    for (std::int64_t first = 0; first < x.dim(0); first += kChunkTokens) {
      run_chunk(context, scratch, x, y, first, std::min(kChunkTokens, x.dim(0) - first));
    }
  }

  /// The arena is there, the router's kernels are chosen: forward only launches.
  [[nodiscard]] std::string uncapturable() const override { return {}; }

 private:
  struct Scratch {
    Routing routing;           // of one chunk
    std::byte* act = nullptr;  // [C·K,I]
  };

  /// The one description of the arena: run on an ArenaPlan it yields the size, on an Arena the
  /// blocks.
  template <class Memory>
  static Scratch carve(Memory& memory, const Problem& problem) {
    const Shape shape = with_shared_slots(problem);
    const std::int64_t tokens = std::min(shape.tokens, kChunkTokens);
    const bool given = problem.router.scoring == Scoring::kGiven;
    Scratch scratch;
    scratch.routing.logits =
        memory.template take<float>(given ? 0 : tokens * problem.shape.experts);
    scratch.routing.shared_weights =
        memory.template take<float>(problem.shared_switch ? tokens : 0);
    scratch.routing.topk_idx = memory.template take<std::int32_t>(tokens * shape.top_k);
    scratch.routing.topk_weights = memory.template take<float>(tokens * shape.top_k);
    scratch.act =
        memory.template take<std::byte>(tokens * shape.top_k * shape.intermediate *
                                        static_cast<std::int64_t>(size_of(problem.dtype)));
    return scratch;
  }

  void run_chunk(Context& context, const Scratch& scratch, const TensorView& x, const TensorView& y,
                 std::int64_t first_token, std::int64_t tokens) {
    const Shape& shape = routed_;
    const std::int64_t rows = tokens * shape.top_k;
    const std::uint64_t offset = element_bytes(first_token * shape.hidden);
    route(context, x, first_token, tokens, scratch.routing);
    const std::int32_t* const topk_idx = scratch.routing.topk_idx;
    const float* const topk_weights = scratch.routing.topk_weights;
    const RowExtras extras = row_extras(topk_idx, topk_weights);
    product_activation(problem_.dtype, problem_.activation, {experts_.gate, topk_idx},
                       {experts_.up, topk_idx}, x.as<const std::byte>() + offset, rows, shape.top_k,
                       shape.intermediate, shape.hidden, scratch.act, shape.intermediate, stream(),
                       extras);
    context.record("in_place_product_activation", element_bytes(rows * shape.intermediate),
                   [&] { return fmt::format("{} rows, weights in place", rows); });
    RowExtras of_output = extras;
    of_output.bias_stride = shape.hidden;
    product_combine(problem_.dtype, {experts_.down, topk_idx}, scratch.act,
                    problem_.router.weight_on_input ? nullptr : topk_weights, tokens, shape.top_k,
                    shape.hidden, shape.intermediate, y.as<std::byte>() + offset, stream(),
                    of_output);
    context.record("in_place_product_combine", element_bytes(tokens * shape.hidden),
                   [&] { return fmt::format("{} tokens, {} experts each", tokens, shape.top_k); });
  }

  ExpertMatrixSet experts_;
};

}  // namespace

std::unique_ptr<Level> make_level03_memefficient() {
  return std::make_unique<MemEfficient>();
}

}  // namespace moe::cuda
