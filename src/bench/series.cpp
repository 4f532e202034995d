#include "bench/series.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <utility>

#include "core/check.h"
#include "core/rng.h"

namespace moe {
namespace {

/// Below this a forward on the same data runs just before the timed one: the thread pool is then
/// awake and the caches hold what the forward before left, as in back-to-back use.
constexpr double kPrimeBelowSeconds = 0.05;

}  // namespace

BenchInputs::BenchInputs(const Problem& problem, const Weights& weights, std::uint64_t seed,
                         const Skew& skew)
    : problem_(problem),
      x_(problem.dtype, {problem.shape.tokens, problem.shape.hidden}),
      y_(problem.dtype, {problem.shape.tokens, problem.shape.hidden}) {
  for (int i = 0; i < kInputs; ++i) {
    const auto variant = static_cast<std::uint64_t>(i);
    inputs_.push_back(make_input(problem, seed, variant, skew));
    oracles_.emplace_back(problem, weights, inputs_.back().view(),
                          OracleOptions{.sample_seed = seed + variant});
  }
}

std::uint64_t BenchInputs::predict_bytes(const Problem& problem) {
  const auto elements = static_cast<std::uint64_t>(problem.shape.tokens) *
                        static_cast<std::uint64_t>(problem.shape.hidden);
  // The oracle keeps doubles for at most as many elements as y has.
  const std::uint64_t oracle = elements * sizeof(double);
  return (kInputs + 2) * elements * size_of(problem.dtype) + kInputs * oracle;
}

void BenchInputs::load(int index) const {
  const TensorView& from = inputs_[static_cast<std::size_t>(index)].view();
  std::memcpy(x_.view().data, from.data, from.bytes());
  poison(y_.view());
}

TimedSeries::TimedSeries(std::string name, Forward forward, const BenchInputs& inputs)
    : name_(std::move(name)), forward_(std::move(forward)), inputs_(&inputs) {}

double TimedSeries::run_forward(int input) {
  inputs_->load(input);
  const auto start = std::chrono::steady_clock::now();
  forward_(inputs_->x(), inputs_->y());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

bool TimedSeries::check(int input, const std::string& when) {
  // First of all, before a forward that returned early can catch up.
  const std::uint64_t written = fingerprint(inputs_->y());
  const auto known = static_cast<std::size_t>(input);
  if (known < verified_.size() && verified_[known] == written) return true;
  // Another bit pattern may still be a right answer: not every way of summing is repeatable.
  const Comparison comparison = inputs_->oracle(input).compare(inputs_->y());
  if (!comparison.passed || !(comparison.tolerance_used <= worst_.tolerance_used)) {
    worst_ = comparison;
  }
  // What was compared must be what was fingerprinted; else somebody still writes to y.
  const bool settled = fingerprint(inputs_->y()) == written;
  if (comparison.passed && settled) return true;
  failure_ = fmt::format("{}, input {}: {}", when, input,
                         settled ? comparison.describe() : "y changed after forward returned");
  return false;
}

bool TimedSeries::verify(const std::function<void()>& before_second,
                         const std::function<void()>& after_second) {
  expected_seconds_ = std::numeric_limits<double>::infinity();
  for (int input = 0; input < BenchInputs::kInputs; ++input) {
    if (input == 1 && before_second) before_second();
    const double seconds = run_forward(input);
    const bool right = check(input, "verification");
    if (input == 1 && after_second) after_second();
    if (!right) return false;
    verified_.push_back(fingerprint(inputs_->y()));
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
  const double seconds = run_forward(input);
  if (!check(input, fmt::format("timed forward {}", microseconds_.size() + 1))) return false;
  microseconds_.push_back(seconds * 1e6);
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
  // Four independent chains of multiply and rotate; the finaliser mixes them with their number.
  std::uint64_t lanes[4] = {1, 2, 3, 4};
  std::size_t at = 0;
  for (; at + 32 <= size; at += 32) {
    std::uint64_t words[4];
    std::memcpy(words, bytes + at, sizeof(words));
    for (int lane = 0; lane < 4; ++lane) {
      const std::uint64_t mixed = (lanes[lane] ^ words[lane]) * 0x9e3779b97f4a7c15ULL;
      lanes[lane] = (mixed << 29) | (mixed >> 35);
    }
  }
  for (; at < size; ++at) lanes[0] = (lanes[0] ^ bytes[at]) * 0x9e3779b97f4a7c15ULL + 1;
  std::uint64_t mixed = size;
  for (const std::uint64_t lane : lanes) mixed = random_bits(mixed, lane, 0);
  return mixed;
}

}  // namespace moe
