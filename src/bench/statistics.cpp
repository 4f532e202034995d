#include "bench/statistics.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/rng.h"

namespace moe {
namespace {

constexpr int kResamples = 1000;

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
