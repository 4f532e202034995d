// The interface every level implements, on every backend. One virtual call per forward.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "moe/layer.h"

namespace moe {

class Device;  // core/backend.h

/// How to execute, as opposed to what (Problem). Resolved: no "auto" left in it.
struct ExecutionOptions {
  int threads = 1;
  std::string isa;  // ceiling for the instruction set (core/isa.h)
  double tune_seconds = 5;
  std::string tune_cache;  // folder, or "off"
  Tuning tuning = Tuning::kMissing;
  std::string tune_skew = "uniform";
  Device* device = nullptr;  // that of the layer; outlives the level
  Launch launch = Launch::kAuto;
  std::function<void(const std::string&)> progress = {};  // LayerOptions::progress; may be empty
  const std::atomic<bool>* cancel = nullptr;              // LayerOptions::cancel
};

/// What forward gets besides x and y.
struct Context {
  Arena arena;
  Routes routes = {};                                 // of Scoring::kGiven, checked
  std::vector<TraceEvent>* trace = nullptr;           // null outside Layer::trace
  const std::function<void()>* after_step = nullptr;  // likewise

  /// Records a step. `detail` is only evaluated while tracing.
  template <class Detail>
  void record(const char* op, std::uint64_t bytes, Detail&& detail) {
    if (trace == nullptr) return;
    trace->push_back({op, std::forward<Detail>(detail)(), bytes});
    if (after_step != nullptr && *after_step) (*after_step)();
  }
};

/// What a level computes beyond softmax routing renormalised over the chosen experts, and SwiGLU.
struct Features {
  bool routers = false;       // every Scoring but kGiven, every setting but weight_on_input
  bool given_routes = false;  // Scoring::kGiven
  bool weight_on_input = false;
  bool activations = false;  // every gated one
  bool ungated = false;
  bool expert_bias = false;
  bool shared_expert = false;  // with and without a switch
  static constexpr Features all() { return {true, true, true, true, true, true, true}; }
};

/// "" when `features` are enough for the problem; else a sentence that says what is missing.
[[nodiscard]] std::string missing_features(const Features& features, const Problem& problem);

class Level {
 public:
  Level() = default;
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;
  virtual ~Level() = default;

  /// Problems that need more are refused before unsupported() is asked.
  [[nodiscard]] virtual Features features() const { return {}; }
  /// "" when the level can run; else the sentence printed as "skipped: ...".
  [[nodiscard]] virtual std::string unsupported(const Problem&, const ExecutionOptions&) const {
    return {};
  }
  /// Whether "auto" takes the level for this problem, or a lower level is the better choice; and what that
  /// is known from, "" where nothing speaks against it. Asked where unsupported() says nothing.
  struct Suitability {
    bool suited = true;
    std::string why = {};
  };
  [[nodiscard]] virtual Suitability suitability(const Problem&, const ExecutionOptions&) const {
    return {};
  }
  /// What prepare() chooses by timing.
  enum class Tunes : std::uint8_t { kNothing, kUnderUniformRouting, kUnderAnyRouting };
  [[nodiscard]] virtual Tunes tunes() const { return Tunes::kNothing; }
  /// Exact for workspace; an upper bound for the others. Called before prepare.
  [[nodiscard]] virtual MemoryNeeds memory(const Problem&, const ExecutionOptions&) const = 0;
  /// Packs weights, records plans, tunes. Timed and reported apart from forward.
  virtual void prepare(const Problem&, const Weights&, const ExecutionOptions&) = 0;
  /// y[T',H] from x[T',H], 1 <= T' <= shape.tokens, already checked. Always includes routing.
  virtual void forward(Context&, const TensorView& x, const TensorView& y) = 0;

  /// Format in which the experts' GEMMs multiply. Decides the tolerance of the outputs.
  [[nodiscard]] virtual Operands operands() const { return Operands::kAsStored; }

  [[nodiscard]] virtual std::string isa() const = 0;  // instruction set really used
  [[nodiscard]] virtual int threads() const = 0;      // threads really used
  [[nodiscard]] virtual std::string plan() const { return {}; }
  [[nodiscard]] virtual std::vector<TunedChoice> tuned() const { return {}; }  // Layer::tuned()
  /// How forward's work gets to the device: kEager or kGraph. Asked after prepare.
  [[nodiscard]] virtual Launch launch() const { return Launch::kEager; }
  /// "" when a caller may record forward into a graph; else the reason why not. A level that launches
  /// graphs of its own (unless ExecutionOptions::launch is kEager) is asked neither.
  [[nodiscard]] virtual std::string uncapturable() const {
    return "its forward does not only queue work";
  }
};

/// LayerOptions::tune_cache with its default looked up.
[[nodiscard]] std::string resolved_tune_cache(const LayerOptions& options);

using LevelFactory = std::unique_ptr<Level> (*)();

/// The factory of a level on a backend; null when that backend is not in this build or has no such
/// level. Defined in registry.cpp.
[[nodiscard]] LevelFactory level_factory(const LevelInfo& level, Backend backend);

}  // namespace moe
