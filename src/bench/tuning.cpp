#include "bench/tuning.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <utility>

#include "bench/series.h"
#include "core/cache_file.h"
#include "core/check.h"
#include "core/device_tensor.h"
#include "core/home_path.h"
#include "core/level.h"
#include "core/statistics.h"

namespace moe {
namespace {

constexpr int kSamples = 15;
/// The level for few tokens, which "auto" takes below the crossover, and the one above.
constexpr const char* kFewLevel = "streaming";
constexpr const char* kManyLevel = "persistent";
constexpr std::int64_t kMostFewTokens = 256;

/// What series.failure() says.
struct WrongOutput {
  std::string failure;
};

/// Throws as Layer::predict does, and kUnsupported for a level that tunes nothing.
void check_tunes(const LayerOptions& options) {
  static_cast<void>(Layer::predict(options));
  const LevelInfo& info = find_level(options.level);
  if (level_factory(info, options.backend)()->tunes() == Level::Tunes::kNothing) {
    fail(ErrorCode::kUnsupported, "level {} chooses nothing by timing on {}", info.name,
         name_of(options.backend));
  }
}

std::string tunable_level(LayerOptions options) {
  if (!options.level.empty()) {
    options.level = find_level(options.level).name;
    check_tunes(options);
    return options.level;
  }
  std::string reasons;
  const auto& levels = list_levels();
  for (std::size_t left = levels.size(); left > 0; --left) {
    const LevelInfo& info = levels[left - 1];
    const LevelFactory factory = level_factory(info, options.backend);
    if (factory == nullptr || factory()->tunes() == Level::Tunes::kNothing) continue;
    try {
      options.level = info.name;
      check_tunes(options);
      return info.name;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      reasons += (reasons.empty() ? "" : "; ") + info.name + ": " + error.what();
    }
  }
  fail(ErrorCode::kUnsupported, "no level chooses anything by timing on {}{}{}",
       name_of(options.backend), reasons.empty() ? "" : ": ", reasons);
}

/// Layers of one shape of weights on one device, and their forwards timed in turns.
class Turns {
 public:
  Turns(const TuneOptions& options, Instrument& instrument, const Weights& host)
      : options_(options), instrument_(instrument), host_(host) {}

  struct Contestant {
    Layer* layer = nullptr;
    std::string name;
  };
  struct Times {
    std::vector<double> microseconds;
    Timing timing;
    Comparison worst;  // of all outputs
  };
  /// kSamples samples of every contestant, in their order.
  [[nodiscard]] std::vector<Times> times(std::int64_t tokens,
                                         const std::vector<Contestant>& contestants) {
    Problem problem = options_.layer.problem;
    problem.shape.tokens = tokens;
    const BenchInputs inputs(problem, host_, options_.seed, Skew::parse(options_.skew),
                             instrument_);
    std::vector<std::unique_ptr<Replay>> graphs;
    std::deque<TimedSeries> series;
    for (const Contestant& contestant : contestants) {
      check_cancelled(tokens);
      Layer* const layer = contestant.layer;
      Forward forward = [layer](const TensorView& x, const TensorView& y) { layer->forward(x, y); };
      Timing timing{instrument_.can_be_cold() ? Cache::kCold : Cache::kHot, Launch::kEager};
      if (layer->capturable()) {
        inputs.load(0);
        // Once before it is recorded: the first forward may load code.
        static_cast<void>(instrument_.seconds([&] { forward(inputs.x(), inputs.y()); }, {}));
        graphs.push_back(instrument_.record([&] { forward(inputs.x(), inputs.y()); }));
        Replay* const graph = graphs.back().get();
        forward = [graph](const TensorView&, const TensorView&) { graph->launch(); };
        timing.launch = Launch::kGraph;
      }
      series.emplace_back(contestant.name, forward, inputs, timing, layer->operands());
      check(series.back(), series.back().verify());
    }
    for (int i = 0; i < kSamples; ++i) {
      for (TimedSeries& one : series) {
        check_cancelled(tokens);
        check(one, one.sample());
      }
    }
    std::vector<Times> times;
    times.reserve(series.size());
    for (const TimedSeries& one : series) {
      times.push_back({one.microseconds(), one.timing(), one.worst()});
    }
    return times;
  }

 private:
  void check_cancelled(std::int64_t tokens) const {
    const std::atomic<bool>* cancel = options_.layer.cancel;
    if (cancel == nullptr || !*cancel) return;
    fail(ErrorCode::kCancelled, "timing forwards of {} tokens was cancelled", tokens);
  }
  static void check(const TimedSeries& series, bool right) {
    if (!right) throw WrongOutput{series.name() + ": " + series.failure()};
  }

  const TuneOptions& options_;
  Instrument& instrument_;
  const Weights& host_;
};

TunedForwards forwards_of(std::int64_t tokens, const std::vector<Turns::Times>& times) {
  const std::vector<double>& untuned = times[0].microseconds;
  const std::vector<double>& tuned = times[1].microseconds;
  const MedianRatio gain = median_ratio(untuned, tuned);
  TunedForwards forwards{.tokens = tokens,
                         .cache = times[1].timing.cache,
                         .launch = times[1].timing.launch,
                         .samples = static_cast<int>(tuned.size()),
                         .untuned_us = median(untuned),
                         .tuned_us = median(tuned),
                         .gain = gain.ratio,
                         .gain_low = gain.low,
                         .gain_high = gain.high};
  if (times.size() > 2) forwards.again_us = median(times[2].microseconds);
  for (const Turns::Times& one : times) {
    if (one.worst.tolerance_used < forwards.tolerance_used) continue;
    forwards.tolerance_used = one.worst.tolerance_used;
    forwards.error = one.worst.max_row_error;
  }
  return forwards;
}

void say(const TuneOptions& options, const std::string& text) {
  if (options.progress) options.progress(text);
}

/// Whole forwards of the layers at every number of tokens that was asked for.
void compare(const TuneOptions& options, Layer& untuned, Layer& tuned, Layer* again, Turns& turns,
             TuneResult& result) {
  for (const std::int64_t tokens : options.tokens) {
    say(options, fmt::format("forwards of {} tokens", tokens));
    std::vector<Turns::Contestant> contestants = {{&untuned, "untuned"}, {&tuned, "tuned"}};
    if (again != nullptr) contestants.push_back({again, "tuned again"});
    result.forwards.push_back(forwards_of(tokens, turns.times(tokens, contestants)));
  }
}

/// Where "auto" changes from the level for few tokens to this one; kept in the cache.
void find_crossover(const TuneOptions& options, Device& device, const Weights& weights,
                    Layer& tuned, Turns& turns, TuneResult& result) {
  const LevelInfo& few_info = find_level(kFewLevel);
  if (result.level.name != kManyLevel ||
      level_factory(few_info, options.layer.backend) == nullptr) {
    return;
  }
  LayerOptions few_options = options.layer;
  few_options.level = kFewLevel;
  few_options.problem.shape.tokens = std::min(kMostFewTokens, options.layer.problem.shape.tokens);
  Layer few = Layer::create(few_options, weights);
  Crossover crossover{.routing = options.skew, .date = utc_now()};
  for (std::int64_t tokens = 1; tokens <= few_options.problem.shape.tokens; tokens *= 2) {
    say(options, fmt::format("{} and {} at {} tokens", kFewLevel, kManyLevel, tokens));
    const std::vector<Turns::Times> times =
        turns.times(tokens, {{&few, kFewLevel}, {&tuned, kManyLevel}});
    crossover.samples.push_back({.tokens = tokens,
                                 .few_us = median(times[0].microseconds),
                                 .many_us = median(times[1].microseconds)});
  }
  const CrossoverCache cache(resolved_tune_cache(options.layer), device.identity(),
                             options.layer.problem, kFewLevel, kManyLevel);
  const std::string problem = cache.save(crossover);
  result.crossover_kept = !problem.empty()       ? "not kept: " + problem
                          : cache.path().empty() ? "not kept: the cache is off"
                                                 : cache.path();
  result.few_level = kFewLevel;
  result.crossover = std::move(crossover);
}

}  // namespace

TuneResult tune(const TuneOptions& given) {
  TuneOptions options = given;
  options.layer.level = tunable_level(options.layer);
  const std::unique_ptr<Instrument> instrument = make_instrument(options.layer);
  Device& device = instrument->device();
  options.layer.stream = device.native_stream();
  TuneResult result{.level = find_level(options.layer.level),
                    .problem = options.layer.problem,
                    .device = instrument->describe(),
                    .budget_seconds = options.layer.tune_seconds};

  say(options, "weights");
  const OwnedWeights host =
      make_weights(options.layer.problem, options.seed, Skew::parse(options.skew));
  const Weights host_view = host.view();
  const DeviceWeights placed = DeviceWeights::of(device, host_view);
  Turns turns(options, *instrument, host_view);

  LayerOptions untuned_options = options.layer;
  untuned_options.tune_seconds = 0;
  untuned_options.tune_cache = "off";
  Layer untuned = Layer::create(untuned_options, placed.view());
  result.untuned_prepare_seconds = untuned.prepare_seconds();

  say(options, "tuning " + result.level.name);
  LayerOptions tuned_options = options.layer;
  tuned_options.tuning = Tuning::kAnew;
  tuned_options.tune_skew = options.skew;
  Layer tuned = Layer::create(tuned_options, placed.view());
  result.prepare_seconds = tuned.prepare_seconds();
  result.plan = with_home_as_tilde(tuned.plan());
  result.choices = tuned.tuned();

  std::optional<Layer> again;
  if (options.repeat_check) {
    say(options, "tuning again");
    LayerOptions again_options = tuned_options;
    again_options.tune_cache = "off";
    again.emplace(Layer::create(again_options, placed.view()));
    result.again_prepare_seconds = again->prepare_seconds();
    result.again = again->tuned();
  }
  try {
    compare(options, untuned, tuned, again ? &*again : nullptr, turns, result);
    find_crossover(options, device, placed.view(), tuned, turns, result);
  } catch (const WrongOutput& wrong) {
    result.failure = wrong.failure;
  }
  return result;
}

}  // namespace moe
