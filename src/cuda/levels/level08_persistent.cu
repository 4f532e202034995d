// Level 08 · persistent — both products of all experts in two persistent kernels of our own (sm_90a).
// Builds on 07 (one launch for all experts, row counts read on the device).
// Changes   weights are packed once into the image that the tensor cores read from shared memory; the
//           kernel puts weights on the 64-row side of wgmma and tokens on the other, whose width is
//           chosen tile by tile in steps of 16; the activation happens in registers, in the first
//           product's epilogue, like biases; blocks stay resident and draw tiles from a counter on the
//           device. A shared expert is cut into parts of the others' size, to which every token goes.
// Why       bytes: no gate|up tensor, 2·T·K·2I·b less than a pass of its own moves (04: 3·T·K·I·b more
//           for SwiGLU, 2·T·K·2I·b for the tensor). FLOPs computed: rows of an expert are rounded up to
//           16 instead of 128: with m rows an expert, (m + 120)/(m + 8) less of them, a third less at
//           m = 128. Launches: 4 or 5 a forward whatever E is, no host in the middle.
// Costs     a second copy of the weights; the permuted rows still make a round trip, T·K·H·b bytes each
//           way (but not at 192 to 288 rows an expert); tiles of less than 128 rows leave a part of the
//           tensor cores' rate. Which tiles are best for how many tokens is known from a rule or, within
//           tune_seconds of making a layer, from timing.
// Measured  docs/levels/level08_persistent.md
//
//   x[T,H] ─permute─▶ rows[TK,H] ─gate|up, act───▶ act[TK,I] ─down─▶ rows[TK,H] ─combine─▶ y[T,H]
//                     └ e0 ┘└── e1 ──┘└ e2 ┘  cut into row tiles ≤ 192 or 320; resident blocks draw
//                     └t0┘  └t1┘└t2┘  └t3┘    (row tile x two blocks of 128 features)
#include <algorithm>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "core/expert_set.h"
#include "core/workload.h"
#include "cuda/check.h"
#include "cuda/graph.h"
#include "cuda/l2_partitions.h"
#include "cuda/ops/grouped_gemm_sm90.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/persistent_tuner.h"
#include "cuda/ops/persistent_weights.h"
#include "cuda/ops/route_front_sm90.h"
#include "cuda/ops/tile_order.h"
#include "cuda/replayed_level.h"
#include "cuda/stopwatch.h"

namespace moe::cuda {
namespace {

constexpr std::uint64_t kTuningSeed = 8;    // of the routes that tuning draws
constexpr std::uint64_t kFlushOfCache = 2;  // times L2 of each of three weights

/// Both products under one plan.
struct Products {
  PersistentPlan plan;
  GroupedGemmSm90 gate_up;
  GroupedGemmSm90 down;

  Products(const PersistentPlan& chosen, const Problem& problem, const DeviceFacts& facts)
      : plan(chosen),
        gate_up(PersistentSpecs(problem).gate_up, chosen.gate_up, facts),
        down(PersistentSpecs(problem).down, chosen.down, facts) {}
  [[nodiscard]] int largest_tile() const { return plan.gate_up.largest_tile; }
};

/// H' and I' are padded (PaddedShape), K counts the slots of a shared expert's parts, too.
struct Buffers {
  std::byte* rows = nullptr;         // [T·K,H'] x by expert; y by expert once act is made
  std::byte* act = nullptr;          // [T·K,I']
  std::byte* padded = nullptr;       // [T,H'] x, then y; used where H' > H or x is not aligned
  float* logits = nullptr;           // [T,E] of the routed experts
  float* shared_weights = nullptr;   // [T] of a shared expert's switch
  std::int32_t* topk_idx = nullptr;  // [T,K]
  float* topk_weights = nullptr;     // [T,K]
  Permutation permutation;
  RowTiles row_tiles;
};

/// The large blocks first: their sizes are multiples of 128 bytes, so that all of them begin at one.
template <class Memory>
Buffers carve(Memory& memory, const Problem& problem, const DeviceFacts& facts) {
  const Shape shape = with_shared_slots(problem);
  const PaddedShape padded(problem);
  const std::int64_t routed = shape.routed_rows();
  const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
  // Whatever is chosen: the smallest tiles are the most.
  const std::int64_t most_tiles = most_row_tiles(routed, shape.experts, kDeepTile);
  Buffers b;
  b.rows = memory.template take<std::byte>(routed * padded.hidden * element);
  b.act = memory.template take<std::byte>(routed * padded.intermediate * element);
  b.padded = memory.template take<std::byte>(shape.tokens * padded.hidden * element);
  b.logits = memory.template take<float>(shape.tokens * problem.shape.experts);
  if (problem.shared_switch) b.shared_weights = memory.template take<float>(shape.tokens);
  b.topk_idx = memory.template take<std::int32_t>(routed);
  b.topk_weights = memory.template take<float>(routed);
  b.permutation.expert_offsets = memory.template take<std::int32_t>(shape.experts + 1);
  b.permutation.dst_row = memory.template take<std::int32_t>(routed);
  b.permutation.block_counts = memory.template take<std::int32_t>(std::max(
      permutation_scratch(routed, shape.experts, facts), RouteFront::scratch(shape, facts)));
  b.row_tiles.tiles = memory.template take<RowTile>(most_tiles);
  b.row_tiles.ready = memory.template take<std::int32_t>(most_tiles);
  b.row_tiles.finished = memory.template take<std::int32_t>(most_tiles);
  b.row_tiles.row_to_token = memory.template take<std::int32_t>(routed);
  b.row_tiles.count = memory.template take<std::int32_t>(RowTiles::kCounts);
  b.row_tiles.tickets = memory.template take<std::int32_t>(RowTiles::kTickets);
  return b;
}

class Persistent final : public ReplayedLevel {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] std::string unsupported(const Problem& problem,
                                        const ExecutionOptions& execution) const override {
    if (problem.dtype != DType::kBF16) {
      return "its kernels are tensor-core products of bf16; fp32 would be rounded";
    }
    const DeviceFacts& facts = device_of(execution).facts();
    if (facts.major != 9) {
      return fmt::format("its kernels are for sm_90a (Hopper); {} has compute capability {}.{}",
                         facts.name, facts.major, facts.minor);
    }
    return CudaLevel::unsupported(problem, execution);
  }

  [[nodiscard]] MemoryNeeds memory(const Problem& problem,
                                   const ExecutionOptions& execution) const override {
    ArenaPlan plan;
    static_cast<void>(carve(plan, problem, device_of(execution).facts()));
    return {.workspace = plan.bytes(),
            .prepared = kBasePrepared + PersistentWeights::bytes(problem) + kGraphsPrepared};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    keep_launch(execution);
    packed_ = PersistentWeights(problem, weights, device_->facts(), stream());
    if (problem.router.scoring != Scoring::kGiven && problem.shared_intermediate == 0) {
      front_.emplace(problem.shape, RouterRule::of(problem.router, weights), weights.router.data,
                     device_->facts());
    }
    choose(execution);
    device_->synchronise();  // packing is part of prepare's time
  }

  [[nodiscard]] Tunes tunes() const override { return Tunes::kUnderAnyRouting; }
  [[nodiscard]] std::string plan() const override;
  [[nodiscard]] std::vector<TunedChoice> tuned() const override;

 private:
  void queue(Context& context, const TensorView& x, const TensorView& y) override {
    const Buffers b = carve(context.arena, problem_, device_->facts());
    Products& products = products_for(x.dim(0));
    if (front_ && front_->takes(x.data, x.dim(0))) {
      route_and_plan_rows(context, products, x, b);
    } else {
      route(context, x, 0, x.dim(0),
            {b.logits, b.topk_idx, b.topk_weights, b.permutation, b.shared_weights});
      plan_rows(context, products, x.dim(0), b);
    }
    gate_up(context, products, align_rows(context, x, b), x.dim(0), b);
    down(context, products, x.dim(0), b);
    combine(context, y, b);
  }

  /// choices_: from the cache, what is missing timed now, else the heuristic's.
  void choose(const ExecutionOptions& execution);
  /// Times `buckets`. Its memory is the workspace's, which does not exist yet.
  [[nodiscard]] std::vector<TunedBucket> tune(const std::vector<std::int64_t>& buckets,
                                              const ExecutionOptions& execution);
  /// The same with the slots of a shared expert's parts.
  [[nodiscard]] RouteTrace with_parts(const RouteTrace& drawn) const;
  [[nodiscard]] Products& products_of(const PersistentPlan& plan);
  [[nodiscard]] Products& products_for(std::int64_t tokens) {
    return *chosen_[bucket_of(buckets_, tokens)];
  }

  /// Before each sample, which overwrites them: numbers of the weights' distribution, for on zeros the
  /// clocks would be higher.
  void fill_rows(const TensorView& x) const;
  /// Fills L2 with what a forward does not read: the weights as they were given.
  void flush_caches(const Buffers& b) const;

  [[nodiscard]] bool pads_hidden() const {
    return PaddedShape(problem_).hidden != problem_.shape.hidden;
  }

  /// route() and plan_rows() in one kernel.
  void route_and_plan_rows(Context& context, const Products& products, const TensorView& x,
                           const Buffers& b) {
    const Shape& shape = problem_.shape;
    front_->run({.x = x.data,
                 .tokens = x.dim(0),
                 .topk_idx = b.topk_idx,
                 .topk_weights = b.topk_weights,
                 .permutation = b.permutation,
                 .row_tiles = b.row_tiles,
                 .largest_tile = products.largest_tile()},
                stream());
    context.record("route", static_cast<std::uint64_t>(x.dim(0) * shape.top_k) * 12, [&] {
      return fmt::format("{} tokens, top {} of {}, at most {} rows a tile; {}", x.dim(0),
                         shape.top_k, shape.experts, products.largest_tile(),
                         to_string(front_->plan(x.dim(0))));
    });
  }

  /// expert_offsets, dst_row, and the list of row tiles.
  void plan_rows(Context& context, const Products& products, std::int64_t tokens,
                 const Buffers& b) {
    const Shape& shape = routed_;
    const int largest = products.largest_tile();
    build_row_tiles({.expert_offsets = b.permutation.expert_offsets,
                     .experts = shape.experts,
                     .dst_row = b.permutation.dst_row,
                     .routed = tokens * shape.top_k,
                     .top_k = shape.top_k,
                     .largest_tile = largest},
                    b.row_tiles, stream());
    context.record(
        "row_tiles",
        static_cast<std::uint64_t>(most_row_tiles(tokens * shape.top_k, shape.experts, largest)) *
            sizeof(RowTile),
        [&] { return fmt::format("at most {} rows a tile", largest); });
  }

  /// Brings x into the form in which the first product can gather its rows: whole blocks, aligned.
  /// Where x has it already, nothing happens. Returns what to gather from.
  const void* align_rows(Context& context, const TensorView& x, const Buffers& b) {
    const auto given_bytes = element_bytes(problem_.shape.hidden);
    const auto row_bytes = element_bytes(PaddedShape(problem_).hidden);
    const auto count = static_cast<std::size_t>(x.dim(0));
    if (!pads_hidden() && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0) return x.data;
    if (pads_hidden()) {
      MOE_CUDA_CHECK(cudaMemsetAsync(b.padded, 0, row_bytes * count, stream()));
    }
    MOE_CUDA_CHECK(cudaMemcpy2DAsync(b.padded, row_bytes, x.data, given_bytes, given_bytes, count,
                                     cudaMemcpyDeviceToDevice, stream()));
    context.record("align", row_bytes * count,
                   [&] { return fmt::format("{} rows of {} bytes", count, row_bytes); });
    return b.padded;
  }

  void gate_up(Context& context, Products& products, const void* x, std::int64_t tokens,
               const Buffers& b) {
    const Shape& shape = routed_;
    const PaddedShape padded(problem_);
    const bool gathers = products.plan.gate_up.gathers;
    const std::int64_t rows = tokens * shape.top_k;
    if (!gathers) permute(context, x, tokens, b);
    products.gate_up.run({.rows = b.rows,
                          .gather_from = gathers ? x : nullptr,
                          .packed_weights = packed_.gate_up().data,
                          .weight_homes = packed_.gate_up().homes,
                          .packed_bias = packed_.gate_up_bias(),
                          .out = b.act,
                          .capacity = shape.routed_rows(),
                          .row_tiles = b.row_tiles,
                          .tickets = b.row_tiles.tickets,
                          .announces = products.plan.down_begins_early},
                         stream());
    const bool writes_rows = gathers && !products.plan.gate_up.cooperative();
    context.record(
        gathers ? "gather_gate_up_activate" : "gate_up_activate",
        element_bytes(rows * (padded.intermediate + (writes_rows ? padded.hidden : 0))), [&] {
          return fmt::format("{} rows n={} k={}", rows,
                             (padded.gated ? 2 : 1) * padded.intermediate, padded.hidden);
        });
  }

  /// x by expert.
  void permute(Context& context, const void* x, std::int64_t tokens, const Buffers& b) {
    const std::int64_t slots = routed_.top_k;
    const std::int64_t row = PaddedShape(problem_).hidden;
    if (problem_.router.weight_on_input) {
      permute_scaled_rows(problem_.dtype, x, b.permutation.dst_row, b.topk_weights, tokens, slots,
                          row, b.rows, stream());
    } else {
      permute_rows(x, b.permutation.dst_row, tokens, slots,
                   static_cast<std::int64_t>(element_bytes(row)), b.rows, stream(),
                   some_slots() ? Slots::kSome : Slots::kAll);
    }
    context.record("permute", element_bytes(tokens * slots * row),
                   [&] { return fmt::format("{} rows", tokens * slots); });
  }

  void down(Context& context, Products& products, std::int64_t tokens, const Buffers& b) {
    const Shape& shape = routed_;
    const PaddedShape padded(problem_);
    products.down.run(
        {.rows = b.act,
         .packed_weights = packed_.down().data,
         .weight_homes = packed_.down().homes,
         .packed_bias = packed_.down_bias(),
         .out = b.rows,
         .capacity = shape.routed_rows(),
         .row_tiles = b.row_tiles,
         .tickets = b.row_tiles.tickets + RowTiles::kTicketsOfProduct,
         .rows_of_previous = true,
         .awaits = products.plan.down_begins_early ? products.gate_up.announcements() : 0},
        stream());
    context.record("gemm_down", element_bytes(tokens * shape.top_k * padded.hidden), [&] {
      return fmt::format("{} rows n={} k={}", tokens * shape.top_k, padded.hidden,
                         padded.intermediate);
    });
  }

  void combine(Context& context, const TensorView& y, const Buffers& b) {
    const Shape& shape = problem_.shape;
    const std::int64_t tokens = y.dim(0);
    const std::int64_t row = PaddedShape(problem_).hidden;
    combine_rows(b, tokens, row, pads_hidden() ? b.padded : y.data);
    if (pads_hidden()) {
      const auto given_bytes = element_bytes(shape.hidden);
      MOE_CUDA_CHECK(cudaMemcpy2DAsync(y.data, given_bytes, b.padded, element_bytes(row),
                                       given_bytes, static_cast<std::size_t>(tokens),
                                       cudaMemcpyDeviceToDevice, stream()));
    }
    context.record("unpermute", y.bytes(), [&] {
      return fmt::format("{} tokens, weighted sum of {} rows", tokens, routed_.top_k);
    });
  }

  /// Weighted sums of a token's rows, `row` elements each.
  void combine_rows(const Buffers& b, std::int64_t tokens, std::int64_t row, void* y) {
    const bool on_input = problem_.router.weight_on_input;
    CombineExtras extras;
    if (some_slots() || on_input) extras.topk_idx = b.topk_idx;
    unpermute_rows(problem_.dtype, b.rows, b.permutation.dst_row,
                   on_input ? nullptr : b.topk_weights, tokens, routed_.top_k, row, y, stream(),
                   extras, true);
  }
  /// Whether there can be slots without a row.
  [[nodiscard]] bool some_slots() const { return problem_.router.scoring == Scoring::kGiven; }

  PersistentWeights packed_;
  std::optional<RouteFront> front_;        // not of given routes, nor with slots of a shared expert
  std::vector<std::int64_t> buckets_;      // of tokens, token_buckets()
  std::vector<PersistentChoice> choices_;  // one a bucket
  std::vector<Products*> chosen_;          // one a bucket, of products_
  std::deque<Products> products_;          // no two of one plan
  std::vector<TunedBucket> timed_;         // by this prepare()
  std::string origin_;                     // of the choices
};

Products& Persistent::products_of(const PersistentPlan& plan) {
  const auto found = std::find_if(products_.begin(), products_.end(),
                                  [&](const Products& p) { return p.plan == plan; });
  if (found != products_.end()) return *found;
  return products_.emplace_back(plan, problem_, device_->facts());
}

void Persistent::choose(const ExecutionOptions& execution) {
  const Shape& shape = problem_.shape;
  const PersistentChoiceCache cache(execution.tune_cache, device_->facts(), problem_,
                                    packed_.placed());
  PersistentChoiceCache::Found found;
  if (execution.tuning == Tuning::kMissing) found = cache.load();
  buckets_ = token_buckets(shape.tokens);
  std::vector<std::int64_t> missing;
  for (const std::int64_t tokens : buckets_) {
    const auto stored = std::find_if(found.choices.begin(), found.choices.end(),
                                     [&](const PersistentChoice& c) { return c.tokens == tokens; });
    const bool is_stored = stored != found.choices.end();
    choices_.push_back(
        is_stored ? *stored
                  : PersistentChoice{.tokens = tokens,
                                     .plan = heuristic_plan(problem_, tokens, device_->facts())});
    // What an earlier layer had no time for is timed when there is more now.
    const bool more_time =
        is_stored && !stored->complete && execution.tune_seconds > stored->budget_seconds;
    if (!is_stored || more_time) missing.push_back(tokens);
  }
  const std::size_t read = buckets_.size() - missing.size();
  origin_ = read == 0 ? "" : fmt::format("{} choices read from {}", read, cache.path());
  if (!found.refused.empty()) {
    origin_ = fmt::format("{} was not used: {}", cache.path(), found.refused);
  }
  const auto also = [&](const std::string& text) {
    origin_ += (origin_.empty() ? "" : "; ") + text;
  };
  if (execution.tune_seconds == 0) {
    if (read < buckets_.size()) also("choices not timed: heuristic");
  } else if (!missing.empty()) {
    timed_ = tune(missing, execution);
    std::vector<PersistentChoice> now;
    for (const TunedBucket& tuned : timed_) {
      now.push_back(tuned.choice);
      *std::find_if(choices_.begin(), choices_.end(), [&](const PersistentChoice& c) {
        return c.tokens == tuned.choice.tokens;
      }) = tuned.choice;
    }
    const std::string problem = cache.save(now);
    also(fmt::format("{} choices timed now, within {} s, {}", now.size(), execution.tune_seconds,
                     !problem.empty()  ? "not kept: " + problem
                     : cache.enabled() ? "kept in " + cache.path()
                                       : std::string("not kept: the cache is off")));
  }
  // Those that were only candidates are not needed any more.
  products_.clear();
  for (const PersistentChoice& choice : choices_) chosen_.push_back(&products_of(choice.plan));
}

std::vector<TunedBucket> Persistent::tune(const std::vector<std::int64_t>& buckets,
                                          const ExecutionOptions& execution) {
  const Shape& shape = routed_;
  const DeviceFacts& facts = device_->facts();
  const DeviceBuffer memory(this->memory(problem_, execution).workspace);
  Arena arena(memory.data(), memory.size());
  const Buffers b = carve(arena, problem_, facts);
  const RouteTrace routes =
      with_parts(draw_routes(problem_.shape, kTuningSeed, Skew::parse(execution.tune_skew)));
  device_->copy_from_host(b.topk_idx, routes.indices.data(), routes.indices.size() * sizeof(int));
  device_->copy_from_host(b.topk_weights, routes.weights.data(),
                          routes.weights.size() * sizeof(float));
  const Event start;
  const Event end;
  // x lies where padded rows would: whole blocks, aligned. y goes there, too, once x has been read.
  const std::int64_t row = PaddedShape(problem_).hidden;
  const TensorView x(b.padded, problem_.dtype, {shape.tokens, row});
  const auto queue_behind_routing = [&](const PersistentPlan& plan, std::int64_t tokens) {
    Products& products = products_of(plan);
    Context context{.arena = arena};
    plan_rows(context, products, tokens, b);
    gate_up(context, products, x.data, tokens, b);
    down(context, products, tokens, b);
    combine_rows(b, tokens, row, b.padded);
  };
  // Plans are compared as they are replayed: launched one by one, kernels hide what the host takes for those
  // behind them, and a plan of more kernels hides more.
  std::vector<std::pair<PersistentPlan, GraphExec>> graphs;
  const auto graph_of = [&](const PersistentPlan& plan, std::int64_t tokens) -> const GraphExec& {
    const auto found = std::find_if(graphs.begin(), graphs.end(),
                                    [&](const auto& graph) { return graph.first == plan; });
    if (found != graphs.end()) return found->second;
    // What a kernel loads when it is first launched cannot be recorded.
    queue_behind_routing(plan, tokens);
    const QueueElsewhere recording(*this, recorder());
    return graphs
        .emplace_back(plan, GraphExec(recorder(), [&] { queue_behind_routing(plan, tokens); }))
        .second;
  };
  return tune_persistent({.problem = problem_,
                          .facts = facts,
                          .routing = execution.tune_skew,
                          .prepare =
                              [&](std::int64_t tokens) {
                                graphs.clear();
                                build_permutation(b.topk_idx, tokens * shape.top_k, shape.experts,
                                                  b.permutation, facts, stream());
                              },
                          .sample =
                              [&](const PersistentPlan& plan, std::int64_t tokens) {
                                const GraphExec& graph = graph_of(plan, tokens);
                                fill_rows(x.first_rows(tokens));
                                flush_caches(b);
                                // What routes tokens has just read x.
                                read_memory(x.data, x.first_rows(tokens).bytes(),
                                            reinterpret_cast<unsigned*>(b.row_tiles.count),
                                            stream());
                                // Else the sample would have in it what the host takes to queue the graph.
                                hold(stream());
                                start.record(stream());
                                graph.launch(stream());
                                end.record(stream());
                                end.wait();
                                return end.milliseconds_since(start) * 1e3;
                              }},
                         buckets, execution.tune_seconds);
}

RouteTrace Persistent::with_parts(const RouteTrace& drawn) const {
  RouteTrace all{.tokens = drawn.tokens, .experts = routed_.experts, .top_k = routed_.top_k};
  for (std::int64_t token = 0; token < drawn.tokens; ++token) {
    for (std::int64_t slot = 0; slot < routed_.top_k; ++slot) {
      const bool part = slot >= drawn.top_k;
      const auto at = static_cast<std::size_t>(token * drawn.top_k + slot);
      all.indices.push_back(part ? static_cast<std::int32_t>(drawn.experts + slot - drawn.top_k)
                                 : drawn.indices[at]);
      all.weights.push_back(part ? 1 : drawn.weights[at]);
    }
  }
  return all;
}

void Persistent::fill_rows(const TensorView& x) const {
  const TensorView& source = weights_.down;
  for (std::uint64_t at = 0; at < x.bytes(); at += source.bytes()) {
    MOE_CUDA_CHECK(cudaMemcpyAsync(x.as<std::byte>() + at, source.data,
                                   std::min<std::uint64_t>(source.bytes(), x.bytes() - at),
                                   cudaMemcpyDeviceToDevice, stream()));
  }
}

void Persistent::flush_caches(const Buffers& b) const {
  for (const TensorView& given : {weights_.gate, weights_.up, weights_.down}) {
    const std::uint64_t most = kFlushOfCache * device_->facts().l2_bytes;
    read_memory(given.data, std::min<std::uint64_t>(given.bytes(), most) / 16 * 16,
                reinterpret_cast<unsigned*>(b.row_tiles.count), stream());
  }
}

std::vector<TunedChoice> Persistent::tuned() const {
  std::vector<TunedChoice> all;
  for (const PersistentChoice& choice : choices_) {
    all.push_back({.tokens = choice.tokens,
                   .chosen = to_string(choice.plan),
                   .standard = to_string(heuristic_plan(problem_, choice.tokens, device_->facts())),
                   .timed = choice.candidates > 0,
                   .complete = choice.complete,
                   .routing = choice.routing,
                   .date = choice.date,
                   .candidates = choice.candidates,
                   .standard_us = choice.heuristic_us,
                   .chosen_us = choice.chosen_us,
                   .noise = choice.noise});
    for (const TunedBucket& now : timed_) {
      if (now.choice.tokens != choice.tokens) continue;
      all.back().timings = now.timings;
      all.back().pruned = now.pruned;
    }
  }
  return all;
}

std::string Persistent::plan() const {
  const Shape& shape = problem_.shape;
  const PaddedShape padded(problem_);
  const auto stored = static_cast<double>(padded.gate_up().bytes(routed_.experts) +
                                          padded.down().bytes(routed_.experts));
  const std::int64_t matrices = padded.gated ? 3 : 2;
  const auto given = static_cast<double>(
      element_bytes(matrices * shape.hidden *
                    (shape.experts * shape.intermediate + problem_.shared_intermediate)));
  std::string text = fmt::format("packed weights {:.1f} % larger than given; {}",
                                 (stored / given - 1) * 100, origin_);
  if (const std::string placed = packed_.placed(); !placed.empty()) {
    text += fmt::format("; laid by partition of L2: {}", placed);
  }
  const bool divides = std::any_of(choices_.begin(), choices_.end(), [](const auto& choice) {
    return choice.plan.gate_up.by_partition || choice.plan.down.by_partition;
  });
  if (!l2_partitions(device_->facts()).known) {
    if (divides) text += "; partitions of L2 are not known, so nothing is divided between them";
  } else if (packed_.unplaced()) {
    text += "; which partition of L2 weights are behind is not known, so not all are laid by it";
  }
  for (const TunedChoice& choice : tuned()) {
    text += fmt::format(
        "\n{} tokens: {}; {}", choice.tokens, choice.chosen,
        !choice.timed ? std::string("heuristic, not timed")
        : choice.chosen == choice.standard
            ? fmt::format("heuristic{}, {} candidates, {}, {}",
                          choice.complete ? " confirmed" : ", not all timed", choice.candidates,
                          choice.routing, choice.date)
            : fmt::format("tuned, {:.1f} us against {:.1f} of the heuristic, {}, {}",
                          choice.chosen_us, choice.standard_us, choice.routing, choice.date));
  }
  return text;
}

}  // namespace

std::unique_ptr<Level> make_level08_persistent() {
  return std::make_unique<Persistent>();
}

}  // namespace moe::cuda
