// Level 06 · compiled — kernels compiled for this layer's sizes, library kernels chosen by timing.
// Builds on 04 (permute, one library GEMM per expert).
// Changes   the kernels around the GEMMs are compiled when the layer is made, by NVRTC, with H, I, E,
//           K and the type as constants, and do more at once: top-k counts the rows of each expert
//           on the way (one kernel where 04 has two), gather computes dst_row while it copies rows,
//           combine gathers and weighs. The experts' GEMMs run in several streams, SwiGLU of one
//           expert beside the GEMMs of others. How many streams and launching threads, and which of
//           cuBLASLt's kernels for which rows per expert, is timed once and kept on disk.
// Why       bytes and FLOPs are those of level 04:
//             weight bytes 3·E_hit·H·I·b     FLOPs 6·T·K·H·I + 2·T·H·E
//           but one expert's GEMM has ⌈m/128⌉·⌈n/256⌉ tiles, m ≈ T·K/E, for all multiprocessors at
//           once: what the last wave leaves idle is lost in every GEMM when they run in turns, and
//           once in all when they run side by side. SwiGLU, 3·T·K·I·b bytes, hides behind products.
// Costs     the host still reads expert_offsets in the middle of a forward (the device writes them
//           to host memory itself and permutes meanwhile), so no graph can hold it. The first layer
//           of a shape takes seconds; the next finds compiled code and choices in the cache. The
//           timing is of uniform routing; another routing gets the same choices.
// Measured  docs/levels/level06_compiled.md
//
//   x[T,H] ─route─▶ placed, offsets ─permute─▶ rows ┬ stream 0: gate|up e0 ▸ swiglu ▸ down ▸ gate|up e5 ▸ …
//                      │                            ├ stream 1: gate|up e3 ▸ swiglu ▸ down ▸ …    ├▶ combine ─▶ y
//                      └──▶ host: m of each expert  └ stream 2: …                                ┘
#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "cuda/check.h"
#include "cuda/grouped_level.h"
#include "cuda/nvrtc.h"
#include "cuda/ops/expert_choices.h"
#include "cuda/ops/expert_tuner.h"

namespace moe::cuda {
namespace {

/// Milliseconds since it was made or asked last.
class Lap {
 public:
  double next() {
    const auto now = std::chrono::steady_clock::now();
    const std::chrono::duration<double, std::milli> since = now - std::exchange(last_, now);
    return since.count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

class Compiled final : public GroupedLevel {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] std::string unsupported(const Problem& problem,
                                        const ExecutionOptions& execution) const override {
    const std::string reason = CudaLevel::unsupported(problem, execution);
    return reason.empty() ? nvrtc_unavailable() : reason;
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    Lap whole;
    keep(problem, weights, execution);
    Lap lap;
    const std::uint64_t compiled_before = nvrtc_compilations();
    std::unique_ptr<LayerKernels> kernels =
        make_specialised_kernels(problem, device_->facts(), execution.tune_cache, weights);
    start_.kernels = lap.next();
    keep_experts(std::move(kernels), ExpertGemms::kMostStreams,
                 std::min(execution.threads, ExpertGemms::kMostLaunchers));
    lap.next();
    gemms_->choose_up_to(problem.shape.tokens);
    start_.library = lap.next();
    choose(execution);
    start_.tuning = lap.next();
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream()));
    start_.total = whole.next();
    finish(compiled_before != nvrtc_compilations());
  }

  [[nodiscard]] Tunes tunes() const override { return Tunes::kUnderUniformRouting; }
  [[nodiscard]] int threads() const override {  // of the host, which launch
    int most = 1;
    for (const ExpertChoice& choice : choices_) most = std::max(most, choice.schedule.launchers);
    return most;
  }
  [[nodiscard]] std::string plan() const override;
  [[nodiscard]] std::vector<TunedChoice> tuned() const override;

 protected:
  [[nodiscard]] ExpertSchedule schedule(std::int64_t tokens) const override {
    return choice_for(choices_, tokens).schedule;
  }

 private:
  /// choices_: from the cache, else timed now, else the defaults.
  void choose(const ExecutionOptions& execution);
  /// Keeps what was timed now, with how long this start took, and says where things come from.
  void finish(bool compiled_now);

  std::vector<ExpertChoice> choices_;  // one per load
  std::optional<ExpertChoiceCache> cache_;
  std::optional<StoredChoices> stored_;  // what the cache had
  std::optional<StoredChoices> timed_;   // what is timed now
  std::string remark_;                   // what was wrong with the cache or a choice; "" = nothing
  StartUp start_;
  std::string origin_;  // of the choices, and of the time to start
};

void Compiled::choose(const ExecutionOptions& execution) {
  cache_.emplace(execution.tune_cache, device_->facts(), problem_, gemms_->launchers());
  ExpertChoiceCache::Found found;
  if (execution.tuning == Tuning::kMissing) found = cache_->load();
  if (!found.refused.empty()) {
    remark_ = fmt::format("; {} was not used: {}", cache_->path(), found.refused);
  }
  stored_ = std::move(found.stored);
  // What an earlier layer had no time for is timed when there is more now.
  const bool enough =
      stored_ && (stored_->complete || execution.tune_seconds <= stored_->budget_seconds);
  if (enough) {
    choices_ = stored_->choices;
  } else {
    choices_ = stored_ ? stored_->choices : default_choices(routed_);
    if (execution.tune_seconds > 0) {
      const bool complete = tune_experts({.gemms = &*gemms_,
                                          .kernels = kernels_.get(),
                                          .problem = problem_,
                                          .weights = weights_,
                                          .stream = stream(),
                                          .cancel = execution.cancel},
                                         execution.tune_seconds, choices_);
      timed_ = {choices_, execution.tune_seconds, complete, {}};
    }
  }
  if (const std::string refused = apply_choices(choices_, *gemms_); !refused.empty()) {
    remark_ += "; " + refused;
  }
}

void Compiled::finish(bool compiled_now) {
  const auto times = [](const StartUp& start) {
    return fmt::format("{:.0f} ms (kernels {:.0f}, cuBLASLt's proposals {:.0f}, tuning {:.0f})",
                       start.total, start.kernels, start.library, start.tuning);
  };
  origin_ = fmt::format("choices {}", timed_    ? "timed now"
                                      : stored_ ? "read from " + cache_->path()
                                                : std::string("not timed"));
  if (timed_) {
    timed_->cold = start_;
    const std::string problem = cache_->save(*timed_);
    origin_ += fmt::format(", within {} s{}, {}", timed_->budget_seconds,
                           timed_->complete ? "" : " (not all of them)",
                           !problem.empty()    ? "not kept: " + problem
                           : cache_->enabled() ? "kept in " + cache_->path()
                                               : std::string("not kept: the cache is off"));
  }
  origin_ += remark_;
  origin_ += fmt::format("\n{} start {}", timed_ || compiled_now ? "cold" : "warm", times(start_));
  if (!timed_ && stored_) {
    origin_ += fmt::format("; the cold one that made the choices took {}", times(stored_->cold));
  }
}

/// "4 streams, ...; 16 to 63 rows per expert: gate|up by ..., down by ..."
std::string describe(const ExpertChoice& choice) {
  const auto kernel = [](const std::optional<MatmulAlgorithm>& algorithm) {
    return algorithm ? describe(*algorithm) : std::string("the library's first proposal");
  };
  return fmt::format("{}; {} to {} rows per expert: gate|up by {}, down by {}",
                     describe(choice.schedule), choice.load.first_rows, choice.load.last_rows,
                     kernel(choice.gate_up), kernel(choice.down));
}

std::vector<TunedChoice> Compiled::tuned() const {
  std::vector<TunedChoice> all;
  for (const ExpertChoice& choice : choices_) {
    const ExpertChoice standard{.load = choice.load, .schedule = default_schedule(routed_)};
    all.push_back({.tokens = choice.load.tokens,
                   .chosen = describe(choice),
                   .standard = describe(standard),
                   .timed = choice.timed,
                   .complete = choice.timed,
                   .routing = choice.timed ? "uniform" : "",
                   .date = choice.date,
                   .standard_us = choice.default_microseconds,
                   .chosen_us = choice.microseconds});
  }
  return all;
}

std::string Compiled::plan() const {
  std::string text = fmt::format("{}; {}\n{}\n", cublaslt_version(), kernels_->describe(), origin_);
  for (const ExpertChoice& choice : choices_) {
    text += fmt::format(
        "{} tokens: {}; {}\n", choice.load.tokens, describe(choice),
        choice.timed ? fmt::format("timed {}, {:.0f} us against {:.0f} by default", choice.date,
                                   choice.microseconds, choice.default_microseconds)
                     : std::string("not timed"));
  }
  return text;
}

}  // namespace

std::unique_ptr<Level> make_level06_compiled() {
  return std::make_unique<Compiled>();
}

}  // namespace moe::cuda
