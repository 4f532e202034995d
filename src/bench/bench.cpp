// BenchRun: one problem after the other, the levels of each prepared and verified one by one, then
// timed in interleaved rounds together with the probes.
#include "moe/bench.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <mutex>
#include <numeric>
#include <tuple>

#include "bench/point.h"
#include "bench/probes.h"
#include "bench/series.h"
#include "core/check.h"
#include "core/memory.h"
#include "core/text.h"
#include "core/threads.h"

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Probes of each kind per problem: at least, and at most when there are more rounds than that.
constexpr int kFewestProbes = 5;
constexpr int kMostProbes = 20;
/// Slower forwards are not warmed up further: what one leaves in the caches is long gone in the next.
constexpr double kWarmBelowSeconds = 1;
/// A forward this long is timed well enough to estimate a longer one from.
constexpr double kLongEnoughToEstimate = 0.25;
constexpr std::int64_t kFewestTokensToEstimate = 16;
/// An estimate must exceed the limit by this factor: it is from few tokens, on a shared machine.
constexpr double kEstimateMargin = 1.5;
/// Part of the available memory that levels alive at the same time may take.
constexpr double kUsableMemory = 0.95;

/// A level that was created and verified, and is being timed.
struct Running {
  LevelState* state = nullptr;
  Layer layer;
  std::optional<TimedSeries> series;  // its forward refers to `layer`
  int wanted = 0;
  bool active = true;
};

struct ProcessorTimes {
  double total = 0;
  double steal = 0;
};

/// The first line of /proc/stat: user nice system idle iowait irq softirq steal (proc(5)).
std::optional<ProcessorTimes> processor_times() {
  std::ifstream file("/proc/stat");
  std::string name;
  std::array<double, 8> times{};
  file >> name;
  for (double& time : times) file >> time;
  if (!file || name != "cpu") return std::nullopt;
  return ProcessorTimes{std::accumulate(times.begin(), times.end(), 0.0), times[7]};
}

/// What a level takes from the others that are alive with it: nothing when it cannot run, because
/// create() then refuses, with the reason that its row gives.
MemoryNeeds needs_beside_others(const LayerOptions& options, std::uint64_t usable) {
  try {
    const MemoryNeeds needs = Layer::predict(options);
    return needs.total() > usable ? MemoryNeeds{} : needs;
  } catch (const Error&) {
    return {};
  }
}

std::vector<LevelInfo> wanted_levels(const BenchOptions& options) {
  std::vector<LevelInfo> levels;
  for (const std::string& name : options.levels) levels.push_back(find_level(name));
  if (levels.empty()) levels = list_levels();
  std::sort(levels.begin(), levels.end(), [](const LevelInfo& a, const LevelInfo& b) {
    return std::tie(a.number, a.variant, a.name) < std::tie(b.number, b.variant, b.name);
  });
  levels.erase(std::unique(levels.begin(), levels.end(),
                           [](const LevelInfo& a, const LevelInfo& b) { return a.name == b.name; }),
               levels.end());
  return levels;
}

}  // namespace

struct BenchRun::State {
  BenchOptions options;
  Skew skew;
  int threads = 1;

  mutable std::mutex mutex;  // guards what follows
  std::vector<Point> points;
  bool complete = false;
  double seconds = 0;
  std::optional<double> steal_fraction;
  Clock::time_point started;
  LevelState* in_progress = nullptr;

  std::atomic<bool> stopping{false};
  std::atomic<std::int64_t> forward_began_ns{0};  // 0: no forward runs

  OwnedWeights weights;
  std::unique_ptr<Probes> probes;

  void say(const std::string& text, bool milestone = true) const {
    if (options.progress) options.progress(text, milestone);
  }
  void run();
  void run_point(Point& point);
  bool fits(Point& point);
  std::vector<std::vector<LevelState*>> groups(Point& point);
  std::unique_ptr<Running> start(LevelState& state, const BenchInputs& inputs);
  std::unique_ptr<Running> create(LevelState& state);
  bool too_slow(LevelState& state, const Forward& forward, const BenchInputs& inputs);
  bool verify(Running& level);
  void time_group(Point& point, std::vector<std::unique_ptr<Running>>& running);
  void take_sample(Running& level);
  void decide(LevelState& state, RowStatus status, const std::string& reason);
  void decide(LevelState& state, const Error& error);
  void fail_output(LevelState& state, const std::string& failure);
  Forward forward_of(Layer& layer);
};

// --- before measuring -------------------------------------------------------------------------

BenchRun::BenchRun(BenchOptions options) : state_(std::make_unique<State>()) {
  MOE_CHECK(options.warmup >= 0, "warmup={} must not be negative", options.warmup);
  MOE_CHECK(options.min_samples >= 1, "min_samples={} must be at least 1", options.min_samples);
  MOE_CHECK(options.seconds_per_level >= 0, "seconds_per_level={} must not be negative",
            options.seconds_per_level);
  MOE_CHECK(options.timeout_seconds >= 0, "timeout_seconds={} must not be negative",
            options.timeout_seconds);
  state_->skew = Skew::parse(options.skew);
  state_->threads = options.layer.threads == 0 ? usable_threads() : options.layer.threads;
  (void)parse_isa(options.layer.isa);
  if (options.tokens.empty()) options.tokens = {options.layer.problem.shape.tokens};
  const std::vector<LevelInfo> levels = wanted_levels(options);
  for (const std::int64_t tokens : options.tokens) {
    Point point;
    point.problem = options.layer.problem;
    point.problem.shape.tokens = tokens;
    validate(point.problem.shape);
    for (const LevelInfo& info : levels) {
      LevelState state;
      state.row.level = info;
      state.row.problem = point.problem;
      state.options = options.layer;
      state.options.level = info.name;
      state.options.problem = point.problem;
      point.levels.push_back(std::move(state));
    }
    state_->points.push_back(std::move(point));
  }
  state_->options = std::move(options);
}

BenchRun::~BenchRun() = default;

void BenchRun::State::decide(LevelState& state, RowStatus status, const std::string& reason) {
  const std::lock_guard lock(mutex);
  state.row.status = status;
  state.row.reason = reason;
  state.decided = true;
}

/// A wrong output as the row's verdict, whatever was measured before.
void BenchRun::State::fail_output(LevelState& state, const std::string& failure) {
  {
    const std::lock_guard lock(mutex);
    state.row.wrong_output = true;
    state.row.verified = false;
  }
  decide(state, RowStatus::kFailed, failure);
}

/// An error of one level as its row.
void BenchRun::State::decide(LevelState& state, const Error& error) {
  switch (error.code()) {
    case ErrorCode::kUnsupported:
      return decide(state, RowStatus::kSkipped, error.what());
    case ErrorCode::kOutOfMemory:
      state.row.bytes_needed = std::max(state.row.bytes_needed, error.bytes_needed());
      return decide(state, RowStatus::kOutOfMemory, error.what());
    default:
      return decide(state, RowStatus::kFailed, error.what());
  }
}

/// Whether weights, inputs and answers fit; if not, every row says so.
bool BenchRun::State::fits(Point& point) {
  const bool have_weights = weights.router.view().data != nullptr;
  const std::uint64_t missing =
      BenchInputs::predict_bytes(point.problem) + (have_weights ? 0 : weight_bytes(point.problem));
  const std::uint64_t available = available_memory();
  if (missing <= available) return true;
  for (LevelState& state : point.levels) {
    try {
      state.row.bytes_needed = Layer::predict(state.options).total();
      decide(state, RowStatus::kOutOfMemory,
             fmt::format("weights and inputs alone need {}, {} available", format_bytes(missing),
                         format_bytes(available)));
    } catch (const Error& error) {
      decide(state, error);
    }
  }
  return false;
}

/// All levels in one group when they fit into memory together; else as few groups as a first-fit
/// pass in ascending order finds.
std::vector<std::vector<LevelState*>> BenchRun::State::groups(Point& point) {
  const auto usable =
      static_cast<std::uint64_t>(kUsableMemory * static_cast<double>(available_memory()));
  std::vector<std::vector<LevelState*>> groups(1);
  std::uint64_t kept = 0;
  std::uint64_t transient = 0;
  for (LevelState& state : point.levels) {
    const MemoryNeeds needs = needs_beside_others(state.options, usable);
    const std::uint64_t keeps = needs.workspace + needs.prepared;
    if (kept + keeps + std::max(transient, needs.transient) > usable) {
      groups.emplace_back();
      kept = 0;
      transient = 0;
    }
    kept += keeps;
    transient = std::max(transient, needs.transient);
    groups.back().push_back(&state);
  }
  if (groups.size() > 1) {
    for (LevelState& state : point.levels) {
      state.row.notes = fmt::format("timed in {} groups: {} do not hold all levels at once",
                                    groups.size(), format_bytes(usable));
    }
  }
  return groups;
}

// --- one level --------------------------------------------------------------------------------

Forward BenchRun::State::forward_of(Layer& layer) {
  return [this, &layer](const TensorView& x, const TensorView& y) {
    forward_began_ns = Clock::now().time_since_epoch().count();
    layer.forward(x, y);
    forward_began_ns = 0;
  };
}

/// Estimates a whole forward from shorter ones and refuses what cannot finish. Twice as many tokens
/// at a time, until one takes long enough to time or a quarter of the tokens is reached; the slower
/// of two runs is left out, because the first of a size may allocate or plan.
bool BenchRun::State::too_slow(LevelState& state, const Forward& forward,
                               const BenchInputs& inputs) {
  const double limit = options.timeout_seconds;
  const std::int64_t tokens = state.row.problem.shape.tokens;
  if (limit == 0 || tokens < kFewestTokensToEstimate) return false;
  inputs.load(0);
  const auto seconds_of = [&](std::int64_t rows) {
    double fastest = std::numeric_limits<double>::infinity();
    for (int repeat = 0; repeat < 2; ++repeat) {
      const auto start = Clock::now();
      forward(inputs.x().first_rows(rows), inputs.y().first_rows(rows));
      fastest = std::min(fastest, seconds_since(start));
    }
    return fastest;
  };
  const int forwards = BenchInputs::kInputs + options.warmup + options.min_samples;
  const double enough = std::min(kLongEnoughToEstimate, limit / (8 * forwards));
  std::int64_t rows = 1;
  double half = 0;
  double whole = seconds_of(rows);
  while (whole < enough && rows < tokens / 4 && !stopping) {
    rows *= 2;
    half = whole;
    whole = seconds_of(rows);
  }
  const std::int64_t more = rows == 1 ? 1 : rows / 2;  // rows between the last two measurements
  const double per_row = std::max(0.0, whole - half) / static_cast<double>(more);
  const double estimate = whole + per_row * static_cast<double>(tokens - rows);
  const double needed = state.spent_seconds + forwards * estimate;
  if (needed <= kEstimateMargin * limit) return false;
  decide(
      state, RowStatus::kTimeout,
      fmt::format("about {} a forward (estimated from {} tokens), {} forwards exceed the timeout "
                  "of {:g} s",
                  format_microseconds(estimate * 1e6), rows, forwards, limit));
  return true;
}

std::unique_ptr<Running> BenchRun::State::create(LevelState& state) {
  state.row.bytes_needed = Layer::predict(state.options).total();
  std::unique_ptr<Running> level(
      new Running{&state, Layer::create(state.options, weights.view()), std::nullopt});
  const Layer& layer = level->layer;
  BenchRow& row = state.row;
  row.prepare_ms = layer.prepare_seconds() * 1e3;
  row.workspace_bytes = layer.workspace_bytes();
  row.bytes_needed = layer.memory().total();
  row.threads = layer.threads();
  row.isa = layer.isa();
  row.plan = layer.plan();
  return level;
}

/// Compares a forward per input with the oracle and measures the memory of the second one.
bool BenchRun::State::verify(Running& level) {
  LevelState& state = *level.state;
  std::uint64_t resident = 0;
  const auto before = [&] {
    level.layer.release_workspace_pages();
    reset_peak_resident();
    resident = resident_bytes();
    // Where the peak cannot be reset it stays at the most the process ever had.
    constexpr std::uint64_t kSlack = std::uint64_t{1} << 20;
    if (resident == 0 || peak_resident_bytes() > resident + kSlack) resident = 0;
  };
  const auto after = [&] {
    if (resident == 0) return;
    const std::uint64_t peak = peak_resident_bytes();
    state.row.peak_bytes = peak - std::min(peak, resident);
  };
  const bool right = level.series->verify(before, after);
  state.row.error = level.series->worst().max_row_error;
  state.row.tolerance_used = level.series->worst().tolerance_used;
  state.row.verified = right;
  if (!right) fail_output(state, level.series->failure());
  return right;
}

/// A created, verified and warm level; null when its row is already decided.
std::unique_ptr<Running> BenchRun::State::start(LevelState& state, const BenchInputs& inputs) {
  const auto began = Clock::now();
  {
    const std::lock_guard lock(mutex);
    in_progress = &state;
  }
  try {
    std::unique_ptr<Running> level = create(state);
    state.spent_seconds = seconds_since(began);
    const Forward forward = forward_of(level->layer);
    if (too_slow(state, forward, inputs)) return nullptr;
    level->series.emplace(state.row.level.name, forward, inputs);
    if (!verify(*level)) return nullptr;
    if (!stopping && level->series->expected_seconds() < kWarmBelowSeconds) {
      level->series->warm_up(options.warmup);
    }
    level->wanted = planned_samples(level->series->expected_seconds(), options.seconds_per_level,
                                    options.min_samples);
    state.spent_seconds = seconds_since(began);
    return level;
  } catch (const Error& error) {
    decide(state, error);
  } catch (const std::exception& error) {
    decide(state, RowStatus::kFailed, error.what());
  }
  return nullptr;
}

// --- timing -----------------------------------------------------------------------------------

void BenchRun::State::take_sample(Running& level) {
  LevelState& state = *level.state;
  {
    const std::lock_guard lock(mutex);
    in_progress = &state;
  }
  const auto began = Clock::now();
  std::string failure;
  bool right = false;
  try {
    right = level.series->sample();
    failure = level.series->failure();
  } catch (const std::exception& error) {
    failure = error.what();
  }
  state.spent_seconds += seconds_since(began);
  const std::lock_guard lock(mutex);
  state.decided = true;
  state.microseconds = level.series->microseconds();
  state.row.error = level.series->worst().max_row_error;
  state.row.tolerance_used = level.series->worst().tolerance_used;
  if (!right) {
    state.row.status = RowStatus::kFailed;
    state.row.reason = failure;
    state.row.wrong_output = !level.series->failure().empty();
    state.row.verified = false;
    level.active = false;
    return;
  }
  state.row.status = RowStatus::kOk;
  const double limit = options.timeout_seconds;
  level.active = limit == 0 || state.spent_seconds + level.series->expected_seconds() < limit;
}

/// Interleaved rounds in rotating order. The highest level is timed twice: A/A.
void BenchRun::State::time_group(Point& point, std::vector<std::unique_ptr<Running>>& running) {
  if (running.empty()) return;
  TimedSeries same = *running.back()->series;  // before its first sample; shares layer and answers
  int rounds = 0;
  for (const auto& level : running) rounds = std::max(rounds, level->wanted);
  const int probe_rounds = std::min(rounds, kMostProbes);
  const int probes_per_round = (kFewestProbes + probe_rounds - 1) / probe_rounds;

  for (int round = 0; round < rounds && !stopping; ++round) {
    if (round % 10 == 0) {
      say(fmt::format("T={} round {}/{}", point.problem.shape.tokens, round + 1, rounds));
    }
    if (takes_part(round, rounds, probe_rounds)) {
      for (int i = 0; i < probes_per_round; ++i) {
        ProbeSamples taken;
        probes->sample(taken);
        const std::lock_guard lock(mutex);
        point.probes.append(taken);
      }
    }
    // Position `size` is the second series of the highest level.
    const std::size_t size = running.size();
    for (std::size_t turn = 0; turn <= size && !stopping; ++turn) {
      const std::size_t position = (turn + static_cast<std::size_t>(round)) % (size + 1);
      Running& level = *running[std::min(position, size - 1)];
      if (!level.active || !takes_part(round, rounds, level.wanted)) continue;
      say(fmt::format("T={} round {}/{} {}", point.problem.shape.tokens, round + 1, rounds,
                      level.state->row.level.name),
          false);
      if (position < size) {
        take_sample(level);
      } else if (!same.sample()) {
        fail_output(*level.state, same.failure());
        level.active = false;
      }
    }
  }
  const std::lock_guard lock(mutex);
  if (running.back()->state->row.status == RowStatus::kOk) {
    point.same_level = running.back()->state->row.level.name;
    point.same_first = running.back()->series->microseconds();
    point.same_second = same.microseconds();
  }
}

void BenchRun::State::run_point(Point& point) {
  const std::int64_t tokens = point.problem.shape.tokens;
  if (!fits(point)) return;
  if (weights.router.view().data == nullptr) {
    say("making weights");
    weights = make_weights(point.problem, options.seed, skew);
  }
  if (stopping) return;
  say(fmt::format("T={} making inputs and their fp64 answers", tokens));
  const BenchInputs inputs(point.problem, weights.view(), options.seed, skew);
  {
    const std::lock_guard lock(mutex);
    double active = 0;
    for (int i = 0; i < BenchInputs::kInputs; ++i) {
      const std::vector<std::int64_t>& loads = inputs.oracle(i).tokens_per_expert();
      const auto mean = static_cast<double>(point.problem.shape.routed_rows()) /
                        static_cast<double>(point.problem.shape.experts);
      const auto most = static_cast<double>(*std::max_element(loads.begin(), loads.end()));
      point.max_over_mean += most / mean / BenchInputs::kInputs;
      active += static_cast<double>(inputs.oracle(i).active_experts()) / BenchInputs::kInputs;
    }
    point.active_experts = std::llround(active);
  }
  for (const std::vector<LevelState*>& group : groups(point)) {
    std::vector<std::unique_ptr<Running>> running;
    for (LevelState* state : group) {
      if (stopping) return;
      say(fmt::format("T={} {}: prepare and verify", tokens, state->row.level.name));
      if (auto level = start(*state, inputs)) running.push_back(std::move(level));
    }
    time_group(point, running);
  }
}

void BenchRun::State::run() {
  {
    const std::lock_guard lock(mutex);
    started = Clock::now();
  }
  const std::optional<ProcessorTimes> before = processor_times();
  probes = std::make_unique<Probes>(options.layer.isa, threads);
  for (Point& point : points) {
    if (stopping) break;
    run_point(point);
  }
  const std::optional<ProcessorTimes> after = processor_times();
  const std::lock_guard lock(mutex);
  in_progress = nullptr;
  seconds = seconds_since(started);
  if (before && after && after->total > before->total) {
    steal_fraction = (after->steal - before->steal) / (after->total - before->total);
  }
  complete = !stopping;
}

void BenchRun::run() {
  state_->run();
}

// --- from any thread --------------------------------------------------------------------------

BenchResult BenchRun::result() const {
  const std::lock_guard lock(state_->mutex);
  BenchResult result;
  result.complete = state_->complete;
  result.seconds = state_->complete ? state_->seconds : seconds_since(state_->started);
  result.steal_fraction = state_->steal_fraction;
  if (state_->probes == nullptr) return result;
  ProbeSamples all;
  for (const Point& point : state_->points) {
    append_rows(point, state_->probes->summary(point.probes), result);
    all.append(point.probes);
  }
  result.ceilings = state_->probes->summary(all);
  return result;
}

void BenchRun::stop() {
  state_->stopping = true;
}

double BenchRun::seconds_in_forward() const {
  const std::int64_t began = state_->forward_began_ns;
  if (began == 0) return 0;
  const Clock::duration elapsed = Clock::now().time_since_epoch() - Clock::duration(began);
  return std::chrono::duration<double>(elapsed).count();
}

void BenchRun::abandon() {
  LevelState* state = nullptr;
  {
    const std::lock_guard lock(state_->mutex);
    state = state_->in_progress;
  }
  if (state == nullptr) return;
  state_->decide(*state, RowStatus::kTimeout,
                 fmt::format("a forward had not returned after {:.1f} s", seconds_in_forward()));
}

BenchResult bench(const BenchOptions& options) {
  BenchRun run(options);
  run.run();
  return run.result();
}

}  // namespace moe
