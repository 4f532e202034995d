#include "bench/level_run.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "core/check.h"
#include "core/home_path.h"
#include "core/memory.h"
#include "core/text.h"

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Slower forwards are not warmed up further: what one leaves in the caches is long gone in the next.
constexpr double kWarmBelowSeconds = 1;
/// A forward this long is timed well enough to estimate a longer one from.
constexpr double kLongEnoughToEstimate = 0.25;
constexpr std::int64_t kFewestTokensToEstimate = 16;
/// An estimate must exceed the limit by this factor: it is from few tokens, on a shared machine.
constexpr double kEstimateMargin = 1.5;

constexpr int kProfiledForwards = 5;

RowStatus status_of(const Error& error) {
  switch (error.code()) {
    case ErrorCode::kUnsupported:
      return RowStatus::kSkipped;
    case ErrorCode::kOutOfMemory:
      return RowStatus::kOutOfMemory;
    default:
      return RowStatus::kFailed;
  }
}

}  // namespace

void decide(const RunContext& run, LevelState& state, RowStatus status, const std::string& reason) {
  const std::lock_guard lock(run.mutex);
  for (RowState& row : state.rows) {
    row.row.status = status;
    row.row.reason = reason;
    row.decided = true;
  }
}

void decide(const RunContext& run, LevelState& state, const Error& error) {
  for (RowState& row : state.rows) {
    row.row.bytes_needed = std::max(row.row.bytes_needed, error.bytes_needed());
  }
  decide(run, state, status_of(error), error.what());
}

/// A wrong output as the verdict, whatever was measured before.
void LevelRun::fail_output(const std::string& failure) {
  {
    const std::lock_guard lock(run_.mutex);
    for (RowState& row : state_.rows) {
      row.row.wrong_output = true;
      row.row.verified = false;
    }
  }
  active_ = false;
  decide(run_, state_, RowStatus::kFailed, failure);
}

void LevelRun::describe_layer() {
  const bool graph = replay_ != nullptr || layer_.launch() == Launch::kGraph;
  for (RowState& state : state_.rows) {
    BenchRow& row = state.row;
    row.prepare_ms = layer_.prepare_seconds() * 1e3;
    row.workspace_bytes = layer_.workspace_bytes();
    row.bytes_needed = layer_.memory().total();
    row.threads = layer_.threads();
    row.isa = layer_.isa();
    row.plan = with_home_as_tilde(layer_.plan());
    row.launch = graph ? Launch::kGraph : Launch::kEager;
    if (row.level.name == kAutoLevel) {
      row.level.number = layer_.level().number;
      row.level.technique = "takes " + layer_.level().name;
    }
  }
}

Forward LevelRun::forward() {
  if (replay_ != nullptr) {
    return [this](const TensorView&, const TensorView&) { replay_->launch(); };
  }
  return [this](const TensorView& x, const TensorView& y) { layer_.forward(x, y); };
}

/// Twice as many tokens at a time, until one forward takes long enough to time or a quarter of the
/// tokens is reached; the slower of two runs is left out, because the first of a size may allocate or
/// plan.
bool LevelRun::too_slow(const BenchInputs& inputs) {
  const double limit = run_.options.timeout_seconds;
  const std::int64_t tokens = layer_.problem().shape.tokens;
  if (limit == 0 || tokens < kFewestTokensToEstimate) return false;
  inputs.load(0);
  const auto seconds_of = [&](std::int64_t rows) {
    double fastest = std::numeric_limits<double>::infinity();
    for (int repeat = 0; repeat < 2; ++repeat) {
      fastest = std::min(
          fastest,
          run_.instrument.seconds(
              [&] { layer_.forward(inputs.x().first_rows(rows), inputs.y().first_rows(rows)); },
              {}));
    }
    return fastest;
  };
  const int forwards = BenchInputs::kInputs + run_.options.warmup +
                       run_.options.min_samples * static_cast<int>(rows());
  const double enough = std::min(kLongEnoughToEstimate, limit / (8 * forwards));
  std::int64_t rows = 1;
  double half = 0;
  double whole = seconds_of(rows);
  while (whole < enough && rows < tokens / 4 && !run_.stopping) {
    rows *= 2;
    half = whole;
    whole = seconds_of(rows);
  }
  const std::int64_t more = rows == 1 ? 1 : rows / 2;  // rows between the last two measurements
  const double per_row = std::max(0.0, whole - half) / static_cast<double>(more);
  const double estimate = whole + per_row * static_cast<double>(tokens - rows);
  const double needed = state_.spent_seconds + forwards * estimate;
  if (needed <= kEstimateMargin * limit) return false;
  decide(run_, state_, RowStatus::kTimeout,
         fmt::format("about {} a forward (estimated from {} tokens), {} forwards exceed the "
                     "timeout of {:g} s",
                     format_microseconds(estimate * 1e6), rows, forwards, limit));
  return true;
}

/// Compares a forward per input with the oracle and measures memory: of the host what the second
/// forward adds, of a device what the level has taken since before it was created. Pools of a level
/// keep what they freed, so that this is its peak.
bool LevelRun::verify(std::uint64_t available_before) {
  Device& device = run_.instrument.device();
  std::optional<std::uint64_t> peak;
  std::uint64_t resident = 0;
  const auto before = [&] {
    if (!device.on_host()) return;
    layer_.release_workspace_pages();
    reset_peak_resident();
    resident = resident_bytes();
    // Where the peak cannot be reset it stays at the most the process ever had.
    constexpr std::uint64_t kSlack = std::uint64_t{1} << 20;
    if (resident == 0 || peak_resident_bytes() > resident + kSlack) resident = 0;
  };
  const auto after = [&] {
    if (!device.on_host()) {
      const std::uint64_t available = device.available_memory();
      peak = available_before - std::min(available_before, available);
    } else if (resident != 0) {
      peak = peak_resident_bytes() - std::min(peak_resident_bytes(), resident);
    }
  };
  TimedSeries& series = series_.front();
  const bool right = series.verify(before, after);
  for (RowState& state : state_.rows) {
    state.row.peak_bytes = peak;
    state.row.error = series.worst().max_row_error;
    state.row.tolerance_used = series.worst().tolerance_used;
    state.row.verified = right;
  }
  if (!right) fail_output(series.failure());
  return right;
}

void LevelRun::profile(const BenchInputs& inputs) {
  std::string reason;
  std::optional<KernelProfile> kernels;
  try {
    inputs.load(0);
    const Forward run = forward();
    kernels = run_.instrument.profile(
        [&] { run(inputs.x(), inputs.y()); }, kProfiledForwards,
        [&](const std::function<void()>& after_step) {
          std::vector<std::uint64_t> bytes;
          for (const TraceEvent& event : layer_.trace(inputs.x(), inputs.y(), after_step)) {
            bytes.push_back(event.bytes);
          }
          return bytes;
        },
        reason);
  } catch (const std::exception& error) {
    reason = error.what();
  }
  const std::lock_guard lock(run_.mutex);
  for (RowState& state : state_.rows) {
    state.row.kernels = kernels;
    state.row.kernels_reason = reason;
  }
}

std::unique_ptr<LevelRun> LevelRun::start(const RunContext& run, LevelState& state,
                                          const Weights& weights, const BenchInputs& inputs) {
  const auto began = Clock::now();
  Instrument& instrument = run.instrument;
  if (state.options.cancel == nullptr) state.options.cancel = &run.stopping;
  try {
    for (RowState& row : state.rows) {
      row.row.bytes_needed = Layer::predict(state.options).total();
    }
    const std::uint64_t available_before = instrument.device().available_memory();
    std::unique_ptr<LevelRun> level(
        new LevelRun(run, state, Layer::create(state.options, weights)));
    Layer& layer = level->layer_;
    level->describe_layer();
    state.spent_seconds = seconds_since(began);
    if (level->too_slow(inputs)) return nullptr;
    if (state.options.launch == Launch::kGraph && layer.launch() != Launch::kGraph) {
      // Once before it is recorded: the first forward may load code and choose library kernels.
      inputs.load(0);
      static_cast<void>(instrument.seconds([&] { layer.forward(inputs.x(), inputs.y()); }, {}));
      level->replay_ = instrument.record([&] { layer.forward(inputs.x(), inputs.y()); });
      level->describe_layer();
    }
    const BenchRow& row = state.rows.front().row;
    level->series_.emplace_back(state.name(), level->forward(), inputs,
                                Timing{row.cache, row.launch}, layer.operands());
    if (!level->verify(available_before)) return nullptr;
    if (!run.stopping && level->first_series().expected_seconds() < kWarmBelowSeconds) {
      level->series_.front().warm_up(run.options.warmup);
    }
    for (std::size_t i = 1; i < state.rows.size(); ++i) {
      level->series_.push_back(
          level->first_series().restarted({state.rows[i].row.cache, row.launch}));
    }
    level->again_ = level->first_series().restarted(level->first_series().timing());
    level->wanted_ = planned_samples(level->first_series().expected_seconds(),
                                     run.options.seconds_per_level, run.options.min_samples);
    state.spent_seconds = seconds_since(began);
    return level;
  } catch (const Error& error) {
    // Stopped while it tuned: like the levels after it, it has no row.
    if (error.code() != ErrorCode::kCancelled) decide(run, state, error);
  } catch (const std::exception& error) {
    decide(run, state, RowStatus::kFailed, error.what());
  }
  return nullptr;
}

void LevelRun::sample(std::size_t number) {
  const auto began = Clock::now();
  TimedSeries& series = series_[number];
  RowState& state = state_.rows[number];
  bool right = false;
  try {
    right = series.sample();
  } catch (const Error& error) {
    active_ = false;
    return decide(run_, state_, error);
  } catch (const std::exception& error) {
    active_ = false;
    return decide(run_, state_, RowStatus::kFailed, error.what());
  }
  state_.spent_seconds += seconds_since(began);
  {
    const std::lock_guard lock(run_.mutex);
    state.decided = true;
    state.row.status = RowStatus::kOk;
    state.microseconds = series.microseconds();
    state.readings = series.readings();
    state.row.error = series.worst().max_row_error;
    state.row.tolerance_used = series.worst().tolerance_used;
  }
  if (!right) return fail_output(series.failure());
  const double limit = run_.options.timeout_seconds;
  active_ = limit == 0 || state_.spent_seconds + series.expected_seconds() < limit;
}

void LevelRun::sample_again() {
  try {
    if (!again_->sample()) fail_output(again_->failure());
  } catch (const Error& error) {
    active_ = false;
    decide(run_, state_, error);
  } catch (const std::exception& error) {
    active_ = false;
    decide(run_, state_, RowStatus::kFailed, error.what());
  }
}

}  // namespace moe
