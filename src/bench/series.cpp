#include "bench/series.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "core/check.h"
#include "core/fingerprint.h"
#include "core/text.h"

namespace moe {
namespace {

/// Below this a forward on the same data runs just before the timed one: the thread pool is then
/// awake and the caches hold what the forward before left, as in back-to-back use.
constexpr double kPrimeBelowSeconds = 0.05;
/// An instrument's clock may miss this much of the host's time (launch and wake-up), or this share of it, in
/// the best of kLeastForClock forwards.
constexpr double kUnseenSeconds = 200e-6;  // a host that does other things wakes up late
constexpr double kUnseenShare = 0.5;
constexpr std::size_t kLeastForClock = 3;
/// Outputs shorter than this may be equal by chance.
constexpr std::size_t kLeastBytesToDiffer = 16;

}  // namespace

BenchInputs::BenchInputs(const Problem& problem, const Weights& weights, std::uint64_t seed,
                         const Skew& skew, Instrument& instrument)
    : problem_(problem),
      weights_(weights),
      seed_(seed),
      skew_(skew),
      instrument_(&instrument),
      oracles_(make_oracles(Operands::kAsStored)),
      x_(instrument.device(), problem.dtype, {problem.shape.tokens, problem.shape.hidden}),
      y_(instrument.device(), problem.dtype, {problem.shape.tokens, problem.shape.hidden}) {
  Device& device = instrument.device();
  for (int i = 0; i < kInputs; ++i) {
    const Tensor input = make_input(problem, seed, static_cast<std::uint64_t>(i), skew);
    inputs_.push_back(DeviceTensor::of(device, input.view()));
    if (device.on_host()) host_inputs_.push_back(input);
  }
  if (!device.on_host()) {
    host_y_ = Tensor(problem.dtype, {problem.shape.tokens, problem.shape.hidden});
  }
}

std::vector<Oracle> BenchInputs::make_oracles(Operands operands) const {
  std::vector<Oracle> oracles;
  for (std::uint64_t input = 0; input < kInputs; ++input) {
    oracles.emplace_back(problem_, weights_, make_input(problem_, seed_, input, skew_).view(),
                         OracleOptions{.sample_seed = seed_ + input, .operands = operands});
  }
  return oracles;
}

const Oracle& BenchInputs::oracle(int index, Operands operands) const {
  const auto input = static_cast<std::size_t>(index);
  if (operands == Operands::kAsStored) return oracles_[input];
  if (fp8_oracles_.empty()) fp8_oracles_ = make_oracles(operands);
  return fp8_oracles_[input];
}

std::uint64_t BenchInputs::predict_bytes(const Problem& problem) {
  const auto elements = static_cast<std::uint64_t>(problem.shape.tokens) *
                        static_cast<std::uint64_t>(problem.shape.hidden);
  // The oracle keeps doubles for at most as many elements as y has.
  const std::uint64_t oracle = elements * sizeof(double);
  return (kInputs + 2) * elements * size_of(problem.dtype) + kInputs * oracle;
}

std::uint64_t BenchInputs::predict_device_bytes(const Problem& problem) {
  return (kInputs + 2) * static_cast<std::uint64_t>(problem.shape.tokens) *
         static_cast<std::uint64_t>(problem.shape.hidden) * size_of(problem.dtype);
}

void BenchInputs::load(int index) const {
  instrument_->copy(x_.view(), inputs_[static_cast<std::size_t>(index)].view());
  instrument_->poison(y_.view());
}

const TensorView& BenchInputs::y_on_host() const {
  if (instrument_->device().on_host()) return y_.view();
  instrument_->device().copy_to_host(host_y_.view().data, y_.view().data, y_.view().bytes());
  return host_y_.view();
}

TimedSeries::TimedSeries(std::string name, Forward forward, const BenchInputs& inputs,
                         Timing timing, Operands operands)
    : name_(std::move(name)),
      forward_(std::move(forward)),
      inputs_(&inputs),
      timing_(timing),
      operands_(operands) {}

TimedSeries TimedSeries::restarted(Timing timing) const {
  TimedSeries series = *this;
  series.timing_ = timing;
  series.microseconds_.clear();
  series.readings_.clear();
  series.next_input_ = 0;
  return series;
}

Elapsed TimedSeries::run_forward(int input) {
  inputs_->load(input);
  return inputs_->instrument().elapsed([this] { forward_(inputs_->x(), inputs_->y()); }, timing_);
}

bool TimedSeries::check(int input, const std::string& when) {
  // First of all, before a forward that returned early can catch up.
  Instrument& instrument = inputs_->instrument();
  const std::uint64_t written = instrument.fingerprint(inputs_->y());
  const auto known = static_cast<std::size_t>(input);
  if (known < verified_.size() && verified_[known] == written) return true;
  // Another bit pattern may still be a right answer: not every way of summing is repeatable.
  const Comparison comparison = inputs_->oracle(input, operands_).compare(inputs_->y_on_host());
  if (!comparison.passed || !(comparison.tolerance_used <= worst_.tolerance_used)) {
    worst_ = comparison;
  }
  // What was compared must be what was fingerprinted; else somebody still writes to y.
  const bool settled = instrument.fingerprint(inputs_->y()) == written;
  if (comparison.passed && settled) return true;
  failure_ = fmt::format("{}, input {}: {}", when, input,
                         settled ? comparison.describe() : "y changed after forward returned");
  return false;
}

bool TimedSeries::check_clock(const Elapsed& elapsed, const std::string& when) {
  // Graphs are queued behind work that holds the device: the host's time says nothing about them.
  if (timing_.launch == Launch::kGraph) return true;
  const auto unseen = [](const Elapsed& e) { return e.wall_seconds - e.seconds; };
  if (microseconds_.empty() || std::abs(unseen(elapsed)) < std::abs(unseen(least_unseen_))) {
    least_unseen_ = elapsed;
  }
  if (microseconds_.size() + 1 < kLeastForClock) return true;
  const double allowed = std::max(kUnseenSeconds, kUnseenShare * least_unseen_.wall_seconds);
  if (std::abs(unseen(least_unseen_)) <= allowed) return true;
  failure_ = fmt::format("{}: its clock says {}, but {} passed until the device was idle", when,
                         format_microseconds(least_unseen_.seconds * 1e6),
                         format_microseconds(least_unseen_.wall_seconds * 1e6));
  return false;
}

bool TimedSeries::verify(const std::function<void()>& before_second,
                         const std::function<void()>& after_second) {
  expected_seconds_ = std::numeric_limits<double>::infinity();
  for (int input = 0; input < BenchInputs::kInputs; ++input) {
    if (input == 1 && before_second) before_second();
    const double seconds = run_forward(input).seconds;
    const bool right = check(input, "verification");
    if (input == 1 && after_second) after_second();
    if (!right) return false;
    const std::uint64_t written = inputs_->instrument().fingerprint(inputs_->y());
    const auto same = std::find(verified_.begin(), verified_.end(), written);
    if (same != verified_.end() && inputs_->y().bytes() >= kLeastBytesToDiffer) {
      failure_ = fmt::format(
          "verification: inputs {} and {} give the same output bit for bit, so that nothing shows "
          "that x "
          "is read",
          same - verified_.begin(), input);
      return false;
    }
    verified_.push_back(written);
    expected_seconds_ = std::min(expected_seconds_, seconds);
  }
  return true;
}

void TimedSeries::warm_up(int count) {
  for (int i = 0; i < count; ++i) run_forward(i % BenchInputs::kInputs);
}

bool TimedSeries::sample() {
  const int input = next_input_;
  next_input_ = (next_input_ + 1) % BenchInputs::kInputs;
  if (expected_seconds_ < kPrimeBelowSeconds) run_forward(next_input_);
  const Elapsed elapsed = run_forward(input);
  const std::optional<SensorReading> reading = inputs_->instrument().sense();
  const std::string when = fmt::format("timed forward {}", microseconds_.size() + 1);
  if (!check(input, when) || !check_clock(elapsed, when)) return false;
  microseconds_.push_back(elapsed.seconds * 1e6);
  if (reading) readings_.push_back(*reading);
  return true;
}

int planned_samples(double seconds, double budget_seconds, int least) {
  const double fitting = budget_seconds / std::max(seconds, 1e-9);
  return std::max(least, static_cast<int>(std::min<double>(kMostSamples, fitting)));
}

bool takes_part(int round, int rounds, int wanted) {
  const auto taken_before = [&](std::int64_t r) { return r * wanted / rounds; };
  return taken_before(round + 1) > taken_before(round);
}

std::uint64_t fingerprint(const TensorView& tensor) {
  const auto* bytes = static_cast<const unsigned char*>(tensor.data);
  const std::size_t size = tensor.bytes();
  const std::size_t words = size / sizeof(std::uint64_t);
  std::uint64_t sum = fingerprint_of_length(size);
  std::uint64_t word = 0;
  for (std::size_t i = 0; i < words; ++i) {
    std::memcpy(&word, bytes + i * sizeof(word), sizeof(word));
    sum += fingerprint_term(word, i);
  }
  if (const std::size_t rest = size % sizeof(word); rest > 0) {
    word = 0;
    std::memcpy(&word, bytes + words * sizeof(word), rest);
    sum += fingerprint_term(word, words);
  }
  return sum;
}

}  // namespace moe
