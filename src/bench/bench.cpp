// BenchRun: one problem after the other, the levels of each prepared and verified one by one, then
// timed in interleaved rounds together with the dense twin and the probes.
#include "moe/bench.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <mutex>
#include <tuple>
#include <utility>

#include "bench/level_run.h"
#include "bench/point.h"
#include "bench/probes.h"
#include "bench/processor_time.h"
#include "bench/series.h"
#include "core/check.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/statistics.h"
#include "core/text.h"

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Probes of each kind per problem: at least, and at most when there are more rounds than that.
constexpr int kFewestProbes = 5;
constexpr int kMostProbes = 20;
/// Part of the available memory that levels alive at the same time may take.
constexpr double kUsableMemory = 0.9;

/// What a level takes from the others that are alive with it: nothing when it cannot run, because
/// create() then refuses, with the reason that its row gives.
MemoryNeeds needs_beside_others(const LayerOptions& options, std::uint64_t available) {
  try {
    const MemoryNeeds needs = Layer::predict(options);
    return needs.total() > available ? MemoryNeeds{} : needs;
  } catch (const Error&) {
    return {};
  }
}

/// A level of the run and the launch to ask it for.
struct Wanted {
  LevelInfo level;
  Launch launch = Launch::kAuto;
};

/// What "auto" takes, measured like a variant: its rows name the level once it is created.
LevelInfo chosen_level() {
  LevelInfo info;
  info.number = list_levels().back().number;
  info.name = kAutoLevel;
  info.technique = "the level that suits the problem";
  info.on_cpu = info.on_cuda = true;
  info.variant = true;
  return info;
}

std::vector<LevelInfo> wanted_levels(const BenchOptions& options) {
  std::vector<LevelInfo> levels;
  for (const std::string& name : options.levels) {
    levels.push_back(name == kAutoLevel ? chosen_level() : find_level(name));
  }
  if (levels.empty()) levels = list_levels();
  std::sort(levels.begin(), levels.end(), [](const LevelInfo& a, const LevelInfo& b) {
    return std::tie(a.number, a.variant, a.name) < std::tie(b.number, b.variant, b.name);
  });
  levels.erase(std::unique(levels.begin(), levels.end(),
                           [](const LevelInfo& a, const LevelInfo& b) { return a.name == b.name; }),
               levels.end());
  return levels;
}

std::vector<Wanted> wanted_series(const BenchOptions& options) {
  std::vector<Wanted> wanted;
  for (const LevelLaunch& series : options.series) {
    wanted.push_back({find_level(series.level), series.launch});
  }
  if (!wanted.empty()) return wanted;
  for (const LevelInfo& level : wanted_levels(options)) {
    for (const Launch launch : options.launches) wanted.push_back({level, launch});
  }
  return wanted;
}

std::vector<Cache> wanted_caches(const BenchOptions& options, bool can_be_cold) {
  std::vector<Cache> caches = options.caches;
  if (caches.empty()) caches = {can_be_cold ? Cache::kCold : Cache::kHot};
  for (const Cache cache : caches) {
    MOE_CHECK(cache == Cache::kHot || can_be_cold,
              "the {} backend measures with hot caches only, not {}",
              name_of(options.layer.backend), name_of(cache));
  }
  return caches;
}

}  // namespace

struct BenchRun::State {
  BenchOptions options;
  Skew skew;
  std::unique_ptr<Instrument> instrument;

  mutable std::mutex mutex;  // guards what follows
  std::vector<Point> points;
  bool complete = false;
  double seconds = 0;
  std::optional<ProcessorShares> processors;
  std::optional<DeviceInfo> device_info;
  Clock::time_point started;
  LevelState* in_progress = nullptr;
  std::unique_ptr<CeilingProbes> probes;  // set once

  std::atomic<bool> stopping{false};
  OwnedWeights made;             // seeded weights; empty when the caller gave some
  Weights weights;               // on the host, for the oracle
  DeviceWeights device_weights;  // the same, for the layers

  [[nodiscard]] RunContext context() { return {options, *instrument, mutex, stopping}; }
  void say(const std::string& text, bool milestone = true) const {
    if (options.progress) options.progress(text, milestone);
  }
  void run();
  void run_point(Point& point);
  bool fits(Point& point);
  void make_data(Point& point);
  std::vector<std::vector<LevelState*>> groups(Point& point);
  void time_group(Point& point, std::vector<std::unique_ptr<LevelRun>>& running, Replay* twin);
  void take_probes(Point& point, int count);
  void time_twin(Point& point, Replay& twin);
  void begin(LevelState& state);
};

// --- before measuring -------------------------------------------------------------------------

BenchRun::BenchRun(BenchOptions options) : state_(std::make_unique<State>()) {
  MOE_CHECK(options.warmup >= 0, "warmup={} must not be negative", options.warmup);
  MOE_CHECK(options.min_samples >= 1, "min_samples={} must be at least 1", options.min_samples);
  MOE_CHECK(options.seconds_per_level >= 0, "seconds_per_level={} must not be negative",
            options.seconds_per_level);
  MOE_CHECK(options.timeout_seconds >= 0, "timeout_seconds={} must not be negative",
            options.timeout_seconds);
  MOE_CHECK(!options.launches.empty(), "launches: at least one is needed");
  state_->skew = Skew::parse(options.skew);
  MOE_CHECK(options.layer.problem.router.scoring != Scoring::kGiven,
            "router given: a bench makes no routes; moe verify does");
  MOE_CHECK(!options.weights || state_->skew.kind == Skew::Kind::kUniform,
            "skew {} is made by seeded weights, but weights were given", options.skew);
  (void)parse_isa(options.layer.isa);
  if (options.tokens.empty()) options.tokens = {options.layer.problem.shape.tokens};
  const std::vector<Wanted> wanted = wanted_series(options);
  for (const std::int64_t tokens : options.tokens) {
    Problem problem = options.layer.problem;
    problem.shape.tokens = tokens;
    validate(problem);
    state_->skew.check(problem.shape);
  }
  state_->instrument = make_instrument(options.layer);
  const bool usable = state_->instrument->device().unavailable().empty();
  const std::vector<Cache> caches =
      wanted_caches(options, !usable || state_->instrument->can_be_cold());
  for (const std::int64_t tokens : options.tokens) {
    Point point;
    point.problem = options.layer.problem;
    point.problem.shape.tokens = tokens;
    for (const auto& [info, launch] : wanted) {
      LevelState state;
      state.options = options.layer;
      state.options.level = info.name;
      state.options.problem = point.problem;
      state.options.launch = launch;
      if (usable) state.options.stream = state_->instrument->device().native_stream();
      for (const Cache cache : caches) {
        RowState row;
        row.row.level = info;
        row.row.problem = point.problem;
        row.row.cache = cache;
        row.row.launch = launch;
        state.rows.push_back(std::move(row));
      }
      point.levels.push_back(std::move(state));
    }
    state_->points.push_back(std::move(point));
  }
  state_->options = std::move(options);
}

BenchRun::~BenchRun() = default;

/// Whether weights, inputs and answers fit; if not, every row says so.
bool BenchRun::State::fits(Point& point) {
  Device& device = instrument->device();
  const bool placed = weights.router.data != nullptr;
  const std::uint64_t missing_weights = placed ? 0 : weight_bytes(point.problem);
  std::uint64_t missing =
      BenchInputs::predict_bytes(point.problem) + (options.weights ? 0 : missing_weights);
  std::uint64_t available = available_memory();
  const char* where = "";
  if (missing <= available && !device.on_host()) {
    missing = BenchInputs::predict_device_bytes(point.problem) + missing_weights;
    available = device.available_memory();
    where = " on the device";
  }
  if (missing <= available) return true;
  const RunContext run = context();
  for (LevelState& state : point.levels) {
    try {
      const std::uint64_t needed = Layer::predict(state.options).total();
      decide(run, state,
             Error(ErrorCode::kOutOfMemory,
                   fmt::format("weights and inputs alone need {}, {} available{}",
                               format_bytes(missing), format_bytes(available), where),
                   needed));
    } catch (const Error& error) {
      decide(run, state, error);
    }
  }
  return false;
}

/// All levels in one group when they fit into memory together; else as few groups as a first-fit
/// pass in ascending order finds. What a level allocates and frees itself returns to the host at
/// once; on a device its pool keeps it.
std::vector<std::vector<LevelState*>> BenchRun::State::groups(Point& point) {
  Device& device = instrument->device();
  const std::uint64_t available = device.available_memory();
  const auto usable = static_cast<std::uint64_t>(kUsableMemory * static_cast<double>(available));
  std::vector<std::vector<LevelState*>> groups(1);
  std::uint64_t kept = 0;
  std::uint64_t transient = 0;
  for (LevelState& state : point.levels) {
    MemoryNeeds needs = needs_beside_others(state.options, available);
    if (!device.on_host()) needs.prepared += std::exchange(needs.transient, 0);
    const std::uint64_t keeps = needs.workspace + needs.prepared;
    const bool alone = groups.back().empty();
    if (!alone && kept + keeps + std::max(transient, needs.transient) > usable) {
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
      for (RowState& row : state.rows) {
        row.row.notes = fmt::format("timed in {} groups: {} do not hold all levels at once",
                                    groups.size(), format_bytes(usable));
      }
    }
  }
  return groups;
}

// --- timing -----------------------------------------------------------------------------------

void BenchRun::State::begin(LevelState& state) {
  const std::lock_guard lock(mutex);
  in_progress = &state;
}

void BenchRun::State::take_probes(Point& point, int count) {
  for (int i = 0; i < count; ++i) {
    ProbeSamples taken;
    probes->sample(taken);
    const std::lock_guard lock(mutex);
    point.probes.append(taken);
  }
}

/// One sample of the twin in each state of the caches that the rows have.
void BenchRun::State::time_twin(Point& point, Replay& twin) {
  for (const RowState& row : point.levels.front().rows) {
    const Cache cache = row.row.cache;
    const double took = instrument->seconds([&] { twin.launch(); }, {cache, Launch::kGraph});
    const std::lock_guard lock(mutex);
    point.twin_us[static_cast<std::size_t>(cache)].push_back(took * 1e6);
  }
}

/// Interleaved rounds in rotating order. The highest level is timed twice: A/A.
void BenchRun::State::time_group(Point& point, std::vector<std::unique_ptr<LevelRun>>& running,
                                 Replay* twin) {
  if (running.empty()) return;
  int rounds = 0;
  for (const auto& level : running) rounds = std::max(rounds, level->wanted());
  const int probe_rounds = std::min(rounds, kMostProbes);
  const int probes_per_round = (kFewestProbes + probe_rounds - 1) / probe_rounds;
  // A turn is one row of a level; the last one is the second series of the highest level.
  struct Turn {
    LevelRun* level;
    std::optional<std::size_t> row;
  };
  std::vector<Turn> turns;
  for (const auto& level : running) {
    for (std::size_t row = 0; row < level->rows(); ++row) turns.push_back({level.get(), row});
  }
  turns.push_back({running.back().get(), std::nullopt});

  for (int round = 0; round < rounds && !stopping; ++round) {
    if (round % 10 == 0) {
      say(fmt::format("T={} round {}/{}", point.problem.shape.tokens, round + 1, rounds));
    }
    if (takes_part(round, rounds, probe_rounds)) take_probes(point, probes_per_round);
    if (twin != nullptr) time_twin(point, *twin);
    for (std::size_t i = 0; i < turns.size() && !stopping; ++i) {
      const Turn& turn = turns[(i + static_cast<std::size_t>(round)) % turns.size()];
      LevelRun& level = *turn.level;
      if (!level.active() || !takes_part(round, rounds, level.wanted())) continue;
      say(fmt::format("T={} round {}/{} {}", point.problem.shape.tokens, round + 1, rounds,
                      level.state().name()),
          false);
      begin(level.state());
      if (turn.row) {
        level.sample(*turn.row);
      } else {
        level.sample_again();
      }
    }
  }
  const LevelRun& highest = *running.back();
  const BenchRow& row = highest.state().rows.front().row;
  const std::lock_guard lock(mutex);
  if (row.status != RowStatus::kOk) return;
  point.same.of = {row.level.name, row.problem.shape.tokens, row.cache, row.launch, 0};
  point.same.first = highest.first_series().microseconds();
  point.same.second = highest.second_series().microseconds();
}

void BenchRun::State::make_data(Point& point) {
  if (weights.router.data != nullptr) return;
  if (options.weights) {
    weights = *options.weights;
  } else {
    say("making weights");
    made = make_weights(point.problem, options.seed, skew);
    weights = made.view();
  }
  device_weights = DeviceWeights::of(instrument->device(), weights);
}

void BenchRun::State::run_point(Point& point) {
  const std::int64_t tokens = point.problem.shape.tokens;
  if (!fits(point)) return;
  make_data(point);
  if (stopping) return;
  say(fmt::format("T={} making inputs and their fp64 answers", tokens));
  const BenchInputs inputs(point.problem, weights, options.seed, skew, *instrument);
  {
    const std::lock_guard lock(mutex);
    std::vector<double> active;
    point.expert_load.assign(static_cast<std::size_t>(point.problem.shape.experts), 0);
    for (int i = 0; i < BenchInputs::kInputs; ++i) {
      const std::vector<std::int64_t>& loads = inputs.oracle(i).tokens_per_expert();
      const auto mean = static_cast<double>(point.problem.shape.routed_rows()) /
                        static_cast<double>(point.problem.shape.experts);
      const auto most = static_cast<double>(*std::max_element(loads.begin(), loads.end()));
      point.max_over_mean += most / mean / BenchInputs::kInputs;
      std::transform(loads.begin(), loads.end(), point.expert_load.begin(),
                     point.expert_load.begin(), std::plus<>());
      active.push_back(static_cast<double>(inputs.oracle(i).active_experts()));
    }
    static_assert(BenchInputs::kInputs % 2 == 1, "the median is the count of one input");
    point.active_experts = std::llround(median(active));
  }
  std::unique_ptr<Replay> twin;
  if (instrument->twin_bytes(point.problem) < instrument->device().available_memory() / 2) {
    twin = instrument->make_twin(point.problem);
  }
  const RunContext run = context();
  for (const std::vector<LevelState*>& group : groups(point)) {
    std::vector<std::unique_ptr<LevelRun>> running;
    for (LevelState* state : group) {
      if (stopping) return;
      say(fmt::format("T={} {}: prepare and verify", tokens, state->name()));
      begin(*state);
      auto level = LevelRun::start(run, *state, device_weights.view(), inputs);
      if (level != nullptr) running.push_back(std::move(level));
    }
    time_group(point, running, twin.get());
    if (!options.profile_kernels) continue;
    // After the timing: the recorder, once loaded, makes every later launch slower.
    for (const auto& level : running) {
      if (stopping) return;
      if (!level->active()) continue;
      say(fmt::format("T={} {}: kernels", tokens, level->state().name()));
      begin(level->state());
      level->profile(inputs);
    }
  }
}

void BenchRun::State::run() {
  {
    const std::lock_guard lock(mutex);
    started = Clock::now();
  }
  if (const std::string reason = instrument->device().unavailable(); !reason.empty()) {
    const RunContext run = context();
    for (Point& point : points) {
      for (LevelState& state : point.levels) decide(run, state, RowStatus::kSkipped, reason);
    }
    const std::lock_guard lock(mutex);
    complete = true;
    return;
  }
  const std::optional<ProcessorTime> before = processor_time();
  {
    std::unique_ptr<CeilingProbes> ready = instrument->make_probes();
    const std::lock_guard lock(mutex);
    device_info = instrument->describe();
    probes = std::move(ready);
  }
  for (Point& point : points) {
    if (stopping) break;
    run_point(point);
  }
  const std::optional<ProcessorTime> after = processor_time();
  const std::lock_guard lock(mutex);
  in_progress = nullptr;
  seconds = seconds_since(started);
  processors = shares_between(before, after);
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
  if (state_->processors) {
    result.steal_fraction = state_->processors->steal;
    result.others_fraction = state_->processors->others;
  }
  result.device = state_->device_info;
  const CeilingProbes* probes = state_->probes.get();
  const auto summarised = [&](const ProbeSamples& samples) {
    return probes == nullptr ? Ceilings{} : summary(samples, probes->isa(), probes->threads());
  };
  ProbeSamples all;
  for (const Point& point : state_->points) {
    append_rows(point, summarised(point.probes), result);
    all.append(point.probes);
  }
  result.ceilings = summarised(all);
  return result;
}

void BenchRun::stop() {
  state_->stopping = true;
}

double BenchRun::seconds_in_forward() const {
  return state_->instrument->seconds_running();
}

void BenchRun::abandon() {
  LevelState* state = nullptr;
  {
    const std::lock_guard lock(state_->mutex);
    state = state_->in_progress;
  }
  if (state == nullptr) return;
  const RunContext run = state_->context();
  decide(run, *state, RowStatus::kTimeout,
         fmt::format("a forward had not returned after {:.1f} s", seconds_in_forward()));
}

BenchResult bench(const BenchOptions& options) {
  BenchRun run(options);
  run.run();
  return run.result();
}

}  // namespace moe
