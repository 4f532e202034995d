#include "core/statistics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/check.h"
#include "core/rng.h"

namespace moe {
namespace {

constexpr int kResamples = 1000;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
/// Two-sided 95 % points of Student's t of 2 to 5 samples, and of the normal distribution.
constexpr std::array<double, 4> kStudent = {12.706, 4.303, 3.182, 2.776};
constexpr double kNormal = 1.960;
constexpr int kFewestForRanks = 6;  // 2 * 2^-6 is below 5 %
double two_sided_point(int samples) {
  return samples < kFewestForRanks ? kStudent[static_cast<std::size_t>(samples - 2)] : kNormal;
}

/// Medians of `kResamples` samples drawn with replacement from `samples`.
std::vector<double> bootstrap_medians(const std::vector<double>& samples, std::uint64_t stream) {
  std::vector<double> medians(kResamples);
  std::vector<double> drawn(samples.size());
  std::uint64_t index = 0;
  for (double& value : medians) {
    for (double& pick : drawn) pick = samples[random_bits(0, stream, index++) % samples.size()];
    value = median(drawn);
  }
  return medians;
}

}  // namespace

double quantile(std::vector<double> samples, double q) {
  MOE_INTERNAL_CHECK(!samples.empty() && q >= 0 && q <= 1, "quantile {} of {} samples", q,
                     samples.size());
  std::sort(samples.begin(), samples.end());
  const double position = q * static_cast<double>(samples.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, samples.size() - 1);
  const double fraction = position - static_cast<double>(below);
  return samples[below] + fraction * (samples[above] - samples[below]);
}

double median(const std::vector<double>& samples) {
  return quantile(samples, 0.5);
}

double interquartile_range(const std::vector<double>& samples) {
  return quantile(samples, 0.75) - quantile(samples, 0.25);
}

MedianInterval median_interval(std::vector<double> samples) {
  MOE_INTERNAL_CHECK(!samples.empty(), "interval of no samples");
  std::sort(samples.begin(), samples.end());
  const auto count = static_cast<int>(samples.size());
  if (count == 1) return {.low = 0, .high = kInfinity};
  if (count < kFewestForRanks) {
    const double mean = std::accumulate(samples.begin(), samples.end(), 0.0) / count;
    double squares = 0;
    for (const double sample : samples) squares += (sample - mean) * (sample - mean);
    const double half =
        two_sided_point(count) * std::sqrt(squares / (count - 1)) / std::sqrt(double(count));
    return {.low = std::max(0.0, std::min(samples.front(), mean - half)),
            .high = std::max(samples.back(), mean + half)};
  }
  // The most samples that may be left out on each side: P(fewer than `out`+1 of `count` fair coins
  // show heads) stays within 2.5 %.
  double below = std::pow(0.5, count);
  double term = below;
  int out = 0;
  while (true) {
    term *= static_cast<double>(count - out) / (out + 1);
    if (below + term > 0.025) break;
    below += term;
    ++out;
  }
  const auto first = static_cast<std::size_t>(out);
  return {.low = samples[first], .high = samples[samples.size() - 1 - first]};
}

MedianInterval median_interval(double median, double iqr, int count) {
  MOE_INTERNAL_CHECK(count > 0, "interval of no samples");
  if (count == 1) return {.low = 0, .high = kInfinity};
  const double error = std::sqrt(std::acos(-1.0) / 2) * iqr / 1.349 / std::sqrt(double(count));
  const double half = two_sided_point(count) * error;
  return {.low = std::max(0.0, median - half), .high = median + half};
}

MedianRatio median_ratio(const std::vector<double>& first, const std::vector<double>& second) {
  const std::vector<double> firsts = bootstrap_medians(first, 1);
  const std::vector<double> seconds = bootstrap_medians(second, 2);
  std::vector<double> ratios(firsts.size());
  for (std::size_t i = 0; i < ratios.size(); ++i) ratios[i] = firsts[i] / seconds[i];
  return {.ratio = median(first) / median(second),
          .low = quantile(ratios, 0.025),
          .high = quantile(ratios, 0.975)};
}

double noise_floor(const MedianRatio& same) {
  return std::max(std::abs(same.ratio - 1), (same.high - same.low) / 2);
}

bool distinguishable(const MedianRatio& change, double noise) {
  const bool excludes_one = change.low > 1 || change.high < 1;
  return excludes_one && std::abs(change.ratio - 1) > noise;
}

}  // namespace moe
