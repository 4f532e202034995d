// Level 09 · streaming — a few tokens: every active expert's weights read once, at the rate of memory.
// Builds on 03 (weights read in place).
// Changes   four kernels from x to y, each started while its predecessor drains: the router's logits,
//           whose last blocks choose and list the active experts and their rows; act of every row; its
//           product with down; the sums over a token's slots. Weights go from memory through a ring
//           that each warp has to itself into the tensor cores' small products (m16n8k16, weights on the
//           16-row side, up to 64 tokens on the other): nothing is packed, no token is permuted. Of one
//           token there are three kernels: every block of the first product finds the experts in the
//           logits for itself, weights go straight into registers, and the second product adds up.
// Why       bytes: 3·E_hit·H·I·b of weights, as level 04 reads; tokens are so few that all else
//           stays in L2. At the memory's rate R that is 3·E_hit·H·I·b / R: of one token of a layer
//           with H = 2048, I = 768, K = 8, 75 MB, some 16 µs. Each launch that waits for the one
//           before costs a few µs of that, so there are few and they overlap. FLOPs:
//           6·T·K·H·I + 2·T·H·E, computed for whole tiles of eight tokens an expert.
// Costs     at many rows an expert the products, not the bytes, are the limit, and these are not the
//           tensor cores' fast ones: at most 256 tokens.
// Measured  docs/levels/level09_streaming.md
//
//   x[T,H] ─router─▶ logits[T,E] ─top-k─▶ (expert, its slots) ...          slot = t·K + k
//   x[T,H] ─gate|up, swiglu─▶ act[TK,I] ─down─▶ rows[TK,H] ─combine─▶ y[T,H]
//            a block: an active expert x features
#include <algorithm>

#include "core/crossover.h"
#include "core/expert_set.h"
#include "cuda/check.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/router.h"
#include "cuda/ops/stream_experts.h"
#include "cuda/ops/stream_router.h"
#include "cuda/ops/stream_token.h"
#include "cuda/replayed_level.h"

namespace moe::cuda {
namespace {

/// Rows an expert up to which this level is faster than level 08 where nothing was measured
/// (docs/levels/level09_streaming.md).
constexpr double kMostRowsPerExpert = 2;

/// Rows of act are multiples of 16 bytes.
std::int64_t act_stride(const Shape& shape) {
  return (shape.intermediate + 7) / 8 * 8;
}

/// Slots are those of K chosen experts and the P parts of a shared one: S = K + P of a token.
struct Buffers {
  StreamRouting routing;
  std::uint64_t* choices = nullptr;  // [S], of one token
  std::byte* act = nullptr;          // [T·S,I]
  std::byte* rows = nullptr;         // [T·S,H], unless there is never more than one token
};

template <class Memory>
Buffers carve(Memory& memory, const Problem& problem) {
  const Shape& shape = problem.shape;
  const Shape with_shared = with_shared_slots(problem);
  const std::int64_t slots = with_shared.routed_rows();
  const bool given = problem.router.scoring == Scoring::kGiven;
  Buffers b;
  if (!given) b.routing.logits = memory.template take<float>(shape.tokens * shape.experts);
  if (problem.shared_switch) b.routing.switch_logits = memory.template take<float>(shape.tokens);
  b.routing.topk_idx = memory.template take<std::int32_t>(slots);
  b.routing.topk_weights = memory.template take<float>(slots);
  b.routing.slots = memory.template take<std::int32_t>(slots);
  b.routing.active = memory.template take<ActiveExpert>(
      std::min(shape.routed_rows(), shape.experts) + with_shared.experts - shape.experts);
  b.choices = memory.template take<std::uint64_t>(with_shared.top_k);
  b.act = memory.template take<std::byte>(slots * act_stride(shape) * 2);
  if (!is_one_token(problem, shape.tokens)) {
    b.rows = memory.template take<std::byte>(slots * shape.hidden * 2);
  }
  return b;
}

class Streaming final : public ReplayedLevel {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] std::string unsupported(const Problem& problem,
                                        const ExecutionOptions& execution) const override {
    const Shape& shape = problem.shape;
    if (problem.dtype != DType::kBF16) {
      return "its kernels are tensor-core products of bf16; fp32 would be rounded";
    }
    if (shape.tokens > kMostStreamTokens) {
      return fmt::format("it streams weights past at most {} tokens, and tokens={}",
                         kMostStreamTokens, shape.tokens);
    }
    const Shape with_shared = with_shared_slots(problem);
    if (with_shared.experts > kMaxExperts) {
      return fmt::format("it lists at most {} experts, not {} and a shared one of {} parts",
                         kMaxExperts, shape.experts, with_shared.experts - shape.experts);
    }
    if (const std::int64_t elements = with_shared.routed_rows() * act_stride(shape);
        elements > UINT32_MAX || shape.tokens * shape.hidden > UINT32_MAX) {
      return fmt::format("{} elements between the products exceed 32-bit offsets", elements);
    }
    return CudaLevel::unsupported(problem, execution);
  }

  /// By the crossover that was measured here, else by the rule.
  [[nodiscard]] Suitability suitability(const Problem& problem,
                                        const ExecutionOptions& execution) const override {
    const CrossoverCache cache(execution.tune_cache, device_of(execution).identity(), problem,
                               "streaming", "persistent");
    const CrossoverCache::Found found = cache.load();
    if (!found.stored) {
      return by_rule(problem, execution,
                     found.refused.empty() ? "not measured here: moe tune does"
                                           : cache.path() + " was not used: " + found.refused);
    }
    const Crossover& measured = *found.stored;
    const std::int64_t tokens = problem.shape.tokens;
    if (const std::int64_t last = measured.samples.back().tokens; tokens > last) {
      return by_rule(problem, execution, fmt::format("measured here up to {} tokens", last));
    }
    const std::int64_t most = measured.most_tokens();
    const std::int64_t slower = measured.first_slower();
    return {tokens <= most,
            fmt::format(
                "tokens={}; measured under {} routing, {}, {}: faster than persistent up to {}{}",
                tokens, measured.routing, measured.date, cache.path(), most,
                slower > 0 ? fmt::format(", slower at {}", slower) : "")};
  }

  [[nodiscard]] MemoryNeeds memory(const Problem& problem, const ExecutionOptions&) const override {
    ArenaPlan plan;
    static_cast<void>(carve(plan, problem));
    return {.workspace = plan.bytes(), .prepared = kArrivalBytes + kGraphsPrepared};
  }

  /// Nothing is packed and no library is asked.
  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    problem_ = problem;
    weights_ = weights;
    block_ = StreamBlock::of(problem, weights);
    device_ = &device_of(execution);
    keep_launch(execution);
    arrivals_ = DeviceBuffer(kArrivalBytes);
    MOE_CUDA_CHECK(cudaMemset(arrivals_.data(), 0, arrivals_.size()));
    device_->synchronise();
  }

  [[nodiscard]] std::string plan() const override {
    if (is_one_token(problem_, problem_.shape.tokens)) return to_string(token_config());
    return to_string(config_for(problem_.shape.tokens));
  }

 private:
  void queue(Context& context, const TensorView& x, const TensorView& y) override {
    Buffers b = carve(context.arena, problem_);
    b.routing.arrivals = arrivals_.as<unsigned>();
    const Shape& shape = problem_.shape;
    block_.given_experts = context.routes.experts;
    block_.given_weights = context.routes.weights;
    if (is_one_token(problem_, x.dim(0))) {
      one_token(context, x, y, b);
      return;
    }
    const StreamConfig config = config_for(x.dim(0));
    const StreamExperts experts{.gate = weights_.gate.data,
                                .up = weights_.up.data,
                                .down = weights_.down.data,
                                .tokens = x.dim(0),
                                .hidden = shape.hidden,
                                .intermediate = shape.intermediate,
                                .experts = shape.experts,
                                .top_k = shape.top_k,
                                .routing = b.routing,
                                .act = b.act,
                                .act_stride = act_stride(shape),
                                .block = block_};
    route(context, x, experts);
    gate_up(context, x, experts, config);
    down(context, y, experts, config, b);
  }

  static Suitability by_rule(const Problem& problem, const ExecutionOptions& execution,
                             const std::string& unmeasured) {
    const DeviceFacts& facts = device_of(execution).facts();
    if (facts.major != 9) {
      return {false,
              fmt::format("its crossover is measured on compute capability 9.0; {} has {}.{}",
                          facts.name, facts.major, facts.minor)};
    }
    const double rows = static_cast<double>(problem.shape.routed_rows()) /
                        static_cast<double>(problem.shape.experts);
    return {rows <= kMostRowsPerExpert,
            fmt::format("by rule, for up to {} rows an expert, and this is {:.1f}; {}",
                        kMostRowsPerExpert, rows, unmeasured)};
  }

  static constexpr std::size_t kArrivalBytes = kStreamArrivals * sizeof(unsigned);

  [[nodiscard]] std::int64_t slots_of_token() const { return problem_.shape.top_k + block_.parts; }

  [[nodiscard]] TokenConfig token_config() const {
    return choose_token_config(problem_, device_->facts().multiprocessors);
  }

  /// A forward of fewer rows than the layer was made for is cut as they ask for.
  [[nodiscard]] StreamConfig config_for(std::int64_t tokens) const {
    Problem problem = problem_;
    problem.shape.tokens = tokens;
    return choose_stream_config(problem, device_->facts().multiprocessors);
  }

  void one_token(Context& context, const TensorView& x, const TensorView& y, const Buffers& b) {
    const Shape& shape = problem_.shape;
    const TokenConfig config = token_config();
    const TokenLayer layer{.router = weights_.router.data,
                           .gate = weights_.gate.data,
                           .up = weights_.up.data,
                           .down = weights_.down.data,
                           .hidden = shape.hidden,
                           .intermediate = shape.intermediate,
                           .experts = shape.experts,
                           .top_k = shape.top_k,
                           .logits = b.routing.logits,
                           .switch_logit = b.routing.switch_logits,
                           .choices = b.choices,
                           .act = b.act,
                           .act_stride = act_stride(shape),
                           .block = block_};
    token_router(layer, x.data, stream());
    const std::int64_t slots = slots_of_token();
    const std::int64_t logits =
        (block_.given ? 0 : shape.experts) + (problem_.shared_switch ? 1 : 0);
    const auto written = static_cast<std::uint64_t>(logits) * sizeof(float);
    context.record("token_router", written,
                   [&] { return fmt::format("n={} k={}", logits, shape.hidden); });
    token_gate_up(layer, x.data, config, stream());
    context.record("token_gate_up", element_bytes(slots * layer.act_stride), [&] {
      return fmt::format("{} rows n={} k={}", slots, gate_up_features(), shape.hidden);
    });
    token_down(layer, y.data, config, stream());
    context.record("token_down", y.bytes(), [&] {
      return fmt::format("{} rows n={} k={}, weighted sum", slots, shape.hidden,
                         shape.intermediate);
    });
  }

  void route(Context& context, const TensorView& x, const StreamExperts& experts) {
    const Shape& shape = problem_.shape;
    stream_router(x.data, weights_.router.data, x.dim(0), shape.hidden, shape.experts, shape.top_k,
                  experts.routing, stream(), block_);
    const std::int64_t slots = x.dim(0) * slots_of_token();
    context.record("stream_router", static_cast<std::uint64_t>(slots) * 12, [&] {
      return fmt::format("{} tokens, top {} of {}", x.dim(0), shape.top_k, shape.experts);
    });
  }

  void gate_up(Context& context, const TensorView& x, const StreamExperts& experts,
               const StreamConfig& config) {
    stream_gate_up(experts, x.data, config, stream());
    const std::int64_t rows = experts.tokens * slots_of_token();
    context.record("stream_gate_up", element_bytes(rows * experts.act_stride), [&] {
      return fmt::format("{} rows n={} k={}", rows, gate_up_features(), experts.hidden);
    });
  }

  void down(Context& context, const TensorView& y, const StreamExperts& experts,
            const StreamConfig& config, const Buffers& b) {
    const std::int64_t rows = experts.tokens * slots_of_token();
    stream_down(experts, b.rows, config, stream());
    context.record("stream_down", element_bytes(rows * experts.hidden), [&] {
      return fmt::format("{} rows n={} k={}", rows, experts.hidden, experts.intermediate);
    });
    const bool on_input = block_.weight_on_input;
    // Slots without a row and weights that are 1 are the combine's business.
    const CombineExtras extras{.topk_idx = block_.given || on_input ? b.routing.topk_idx : nullptr};
    unpermute_rows(problem_.dtype, b.rows, nullptr, on_input ? nullptr : b.routing.topk_weights,
                   experts.tokens, slots_of_token(), experts.hidden, y.data, stream(), extras);
    context.record("combine", y.bytes(), [&] {
      return fmt::format("{} tokens, weighted sum of {} rows", experts.tokens, slots_of_token());
    });
  }

  [[nodiscard]] std::int64_t gate_up_features() const {
    return (block_.gated ? 2 : 1) * problem_.shape.intermediate;
  }

  StreamBlock block_;  // given routes are those of the forward in progress
  DeviceBuffer arrivals_;
};

}  // namespace

std::unique_ptr<Level> make_level09_streaming() {
  return std::make_unique<Streaming>();
}

}  // namespace moe::cuda
