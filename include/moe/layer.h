// The MoE layer: create it once for a shape and weights, then call forward.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "moe/config.h"
#include "moe/levels.h"
#include "moe/tensor.h"

namespace moe {

/// The weights of one layer. Views only: complete when create() is called, and outliving the Layer.
///
/// Stored layout: every matrix is [out, in] row-major, contiguous along the reduction, as PyTorch's
/// Linear and safetensors checkpoints store it. Mathematically gate and up are [H,I] and down is
/// [I,H] per expert; here they are their transposes:
///   router [E,H]    gate [E,I,H]  (w1)    up [E,I,H]  (w3)    down [E,H,I]  (w2)
/// All four have Problem::dtype. Router logits are accumulated in fp32. What a problem does not have
/// stays empty: gate without Activation::gated(), the router of Scoring::kGiven, and those below.
struct Weights {
  TensorView router = {};
  TensorView gate = {};
  TensorView up = {};
  TensorView down = {};
  TensorView router_bias = {};     ///< [E] fp32, like all biases; Router::bias
  TensorView selection_bias = {};  ///< [E]; Router::selection_bias
  TensorView gate_bias = {};       ///< [E,I]; Problem::expert_bias, like the two after it
  TensorView up_bias = {};         ///< [E,I]
  TensorView down_bias = {};       ///< [E,H]
  TensorView shared_gate = {};     ///< [S,H] of the dtype, S = Problem::shared_intermediate
  TensorView shared_up = {};       ///< [S,H]
  TensorView shared_down = {};     ///< [H,S]
  TensorView shared_switch = {};   ///< [1,H] of the dtype; Problem::shared_switch
};

/// Experts and weights of the rows of one forward, for Scoring::kGiven. Views, where the layer
/// computes. An expert may stand twice in a row; its weights then add up.
struct Routes {
  const std::int32_t* experts = nullptr;  ///< [T',K]; -1: the slot is not used, its weight not read
  const float* weights = nullptr;         ///< [T',K]
};

/// How a forward's work gets to the device.
enum class Launch : std::uint8_t {
  kAuto,   ///< as the level does it: CUDA levels 5 and 7 to 9 as kGraph, all others as kEager
  kEager,  ///< kernel by kernel from the host
  /// One launch of a recorded graph. Of levels that record themselves: from the second forward with the same
  /// x, y, number of tokens and addresses of routes on; before that, and in a recording of the caller's,
  /// kernel by kernel. They keep the 16 graphs that were used last.
  kGraph,
};
[[nodiscard]] std::string_view name_of(Launch launch);  ///< "auto" | "eager" | "graph"

/// When create() tunes, in levels that do.
enum class Tuning : std::uint8_t {
  kMissing,  ///< what the cache does not have
  kAnew,     ///< everything, whatever the cache has
};

struct LayerOptions {
  std::string level =
      "auto";  ///< number, name, or "auto": the highest level that suits the problem
  Backend backend = Backend::kCpu;
  Problem problem;
  int threads = 0;            ///< CPU threads; 0 = all that this process may use
  std::string isa = "auto";   ///< CPU: "auto", or a ceiling: scalar avx2 avx512f avx512bf16 amx
  double tune_seconds = 5.0;  ///< budget for tuning in create(), for levels that tune
  std::string tune_cache =
      {};  ///< folder for tuning results; "" = $MOE_CACHE or ~/.cache/moe; "off"
  Tuning tuning = Tuning::kMissing;
  /// How tokens are routed while tuning: "uniform", "zipf:S", "hot:N,P", "dirichlet:A", "one-expert".
  /// Levels that only know uniform routing refuse others with kUnsupported.
  std::string tune_skew = "uniform";
  /// Most bytes that create() and forward() may take beyond the given weights; 0 = what the machine
  /// has available. More is refused with Error(kOutOfMemory) before anything is allocated.
  std::uint64_t workspace_limit = 0;
  /// CUDA: the cudaStream_t that forward works on. null = a stream of the layer's own, which waits
  /// for what the caller queued on the default stream, and forward returns when y is complete. With
  /// a stream given, forward returns as soon as it has queued its work, and the caller waits.
  void* stream = nullptr;
  /// CUDA: kGraph is refused with kUnsupported by levels that neither launch graphs of their own nor
  /// can be recorded by the caller (Layer::capturable).
  Launch launch = Launch::kAuto;
  /// Memory for the workspace in place of the layer's own: `workspace_bytes` bytes where the level
  /// computes, aligned to kWorkspaceAlignment, that outlive the layer and that nothing else uses while
  /// a forward runs. null = the layer allocates. Fewer bytes than predict(...).workspace are refused.
  void* workspace = nullptr;
  std::uint64_t workspace_bytes = 0;
  /// Called from create()'s thread with what it does next, e.g. which sizes it tunes. May be empty.
  std::function<void(const std::string&)> progress = {};
  /// Set it, from any thread or a signal handler, and create() throws Error(kCancelled) after the
  /// measurement in progress; what was tuned until then is kept in the tuning cache. null = never.
  const std::atomic<bool>* cancel = nullptr;
};
inline constexpr std::uint64_t kWorkspaceAlignment = 256;

/// Bytes a level needs beyond the caller's weights, x and y. Known before anything is allocated.
struct MemoryNeeds {
  std::uint64_t workspace = 0;  ///< arena: allocated once in create(), reused by every forward
  std::uint64_t transient =
      0;                       ///< most bytes alive at once that forward allocates and frees itself
  std::uint64_t prepared = 0;  ///< kept from create() on: packed weights, plans
  [[nodiscard]] std::uint64_t total() const { return workspace + transient + prepared; }
};

/// One step of a forward as it was executed, recorded by Layer::trace().
struct TraceEvent {
  std::string op;           ///< "route", "gather", "gemm", "alloc", "replay", ...
  std::string detail;       ///< sizes and configuration
  std::uint64_t bytes = 0;  ///< bytes allocated by an "alloc", bytes written by other steps
  bool operator==(const TraceEvent&) const = default;
};

/// One candidate of a tuned choice.
struct TimedCandidate {
  std::string name;
  double median_us = 0;  ///< 0: not timed
  int rounds = 0;        ///< in which it was timed; those that are behind leave early
};

/// What a level takes for forwards of up to `tokens` tokens, and how that came about.
struct TunedChoice {
  std::int64_t tokens = 0;
  std::string chosen;
  std::string standard;   ///< what it takes where nothing is timed
  bool timed = false;     ///< false: not reached by tuning, the standard
  bool complete = false;  ///< every candidate was timed
  std::string routing;    ///< while it was timed
  std::string date;       ///< UTC
  int candidates = 0;     ///< that were timed
  // Medians in turns, when the choice was confirmed; noise is what the standard differs from itself by.
  double standard_us = 0;
  double chosen_us = 0;
  double noise = 0;
  // Of the create() that timed it; empty when it comes from the cache.
  std::vector<TimedCandidate> timings = {};
  std::vector<std::string> pruned = {};  ///< what was not timed, and why
};

/// An MoE layer executed by one level on one backend. Movable, not copyable. Not thread-safe: one
/// forward at a time per Layer; several Layers may share weights.
class Layer {
 public:
  /// Prepares a level: packs weights, records plans, tunes. May take seconds; forward does not.
  /// Throws Error: kInvalidArgument (shape, names, tensors that do not match the problem),
  /// kUnsupported (the level cannot run here; what() is the reason), kOutOfMemory (predicted),
  /// kCancelled (LayerOptions::cancel).
  static Layer create(const LayerOptions& options, const Weights& weights);

  Layer(Layer&&) noexcept;
  Layer& operator=(Layer&&) noexcept;
  ~Layer();

  /// y[T',H] = MoE(x[T',H]) for 0 <= T' <= shape.tokens. x and y have Problem::dtype and must not
  /// overlap; on the CUDA backend they are device memory. Routing is part of forward. On return y is
  /// complete, unless LayerOptions::stream was given.
  /// Throws kInvalidArgument when x or y do not match.
  void forward(const TensorView& x, const TensorView& y);
  /// The same for Scoring::kGiven, with the rows' experts and weights; in host memory an index that is
  /// neither an expert nor -1 is refused with kInvalidArgument. A row without any expert gets what the
  /// shared expert says, else zeros.
  void forward(const TensorView& x, const TensorView& y, const Routes& routes);

  /// Runs one forward and returns what it did, step by step. `after_step` is called when a step has
  /// been recorded: what is queued between two calls belongs to the later one's step.
  [[nodiscard]] std::vector<TraceEvent> trace(const TensorView& x, const TensorView& y,
                                              const std::function<void()>& after_step = {},
                                              const Routes& routes = {});

  [[nodiscard]] const LevelInfo& level() const;
  [[nodiscard]] const Problem& problem() const;
  [[nodiscard]] Backend backend() const;
  [[nodiscard]] MemoryNeeds memory() const;
  [[nodiscard]] std::uint64_t workspace_bytes() const;  ///< memory().workspace
  [[nodiscard]] double prepare_seconds() const;         ///< what create() spent in the level
  /// Format in which the experts' GEMMs multiply; for OracleOptions::operands.
  [[nodiscard]] Operands operands() const;
  [[nodiscard]] std::string isa() const;   ///< instruction set the level really uses
  [[nodiscard]] int threads() const;       ///< threads the level really uses
  [[nodiscard]] std::string plan() const;  ///< chosen tiles, partition, provenance
  /// By tokens, descending; empty for levels that do not choose by tokens.
  [[nodiscard]] std::vector<TunedChoice> tuned() const;
  [[nodiscard]] std::string choice() const;  ///< why "auto" took this level; else ""
  [[nodiscard]] Launch launch() const;       ///< what forward does: kEager or kGraph
  /// Whether the caller may record forward into a graph: it queues work on LayerOptions::stream and
  /// does nothing else.
  [[nodiscard]] bool capturable() const;

  /// Hands the arena's pages back to the system; the next forward faults them in again. For
  /// measuring peak memory.
  void release_workspace_pages();

  /// Predicts what create() would need, without creating. Throws like create() for bad arguments
  /// and kUnsupported.
  [[nodiscard]] static MemoryNeeds predict(const LayerOptions& options);

 private:
  struct State;
  void run(const TensorView& x, const TensorView& y, const Routes& routes);
  explicit Layer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace moe
