// One level on one problem while it is measured: created, verified, then timed sample by sample. What
// it does wrong becomes its rows.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bench/point.h"
#include "bench/series.h"
#include "moe/error.h"

namespace moe {

/// What all levels of a run share.
struct RunContext {
  const BenchOptions& options;
  Instrument& instrument;
  std::mutex& mutex;  // guards the rows, which another thread may read
  const std::atomic<bool>& stopping;
};

/// The verdict on all rows of a level.
void decide(const RunContext& run, LevelState& state, RowStatus status, const std::string& reason);
void decide(const RunContext& run, LevelState& state, const Error& error);

class LevelRun {
 public:
  /// A created, verified and warm level; null when its rows are already decided. `weights` are on the
  /// device; they and `inputs` outlive it.
  [[nodiscard]] static std::unique_ptr<LevelRun> start(const RunContext& run, LevelState& state,
                                                       const Weights& weights,
                                                       const BenchInputs& inputs);

  /// One timed forward of row number `row`, and its check.
  void sample(std::size_t row);
  /// The same for a second series of row 0, whose samples are kept apart.
  void sample_again();
  /// Records the kernels of a few more forwards, and of a traced one for their bytes.
  void profile(const BenchInputs& inputs);

  [[nodiscard]] LevelState& state() const { return state_; }
  [[nodiscard]] std::size_t rows() const { return state_.rows.size(); }
  [[nodiscard]] int wanted() const { return wanted_; }  // samples of each row
  [[nodiscard]] bool active() const { return active_; }
  [[nodiscard]] const TimedSeries& first_series() const { return series_.front(); }
  [[nodiscard]] const TimedSeries& second_series() const { return *again_; }

 private:
  LevelRun(const RunContext& run, LevelState& state, Layer layer)
      : run_(run), state_(state), layer_(std::move(layer)) {}

  void describe_layer();
  [[nodiscard]] Forward forward();
  /// Estimates a whole forward from shorter ones and refuses what cannot finish.
  bool too_slow(const BenchInputs& inputs);
  bool verify(std::uint64_t available_before);
  void fail_output(const std::string& failure);

  const RunContext& run_;
  LevelState& state_;
  Layer layer_;
  std::unique_ptr<Replay> replay_;    // a recorded forward, when this run records it
  std::vector<TimedSeries> series_;   // by row; their forward refers to layer_ or replay_
  std::optional<TimedSeries> again_;  // A/A
  int wanted_ = 0;
  bool active_ = true;
};

}  // namespace moe
