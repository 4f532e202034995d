// Order statistics of timing samples and the comparison of two series.
#pragma once

#include <cstdint>
#include <vector>

namespace moe {

/// The value below which a fraction `q` of the samples lies, linear between neighbours (type 7 of
/// Hyndman and Fan 1996). `samples` must not be empty.
[[nodiscard]] double quantile(std::vector<double> samples, double q);
[[nodiscard]] double median(const std::vector<double>& samples);
/// Third quartile minus first.
[[nodiscard]] double interquartile_range(const std::vector<double>& samples);

/// A 95 % interval of the median of what the samples are drawn from.
struct MedianInterval {
  double low = 0;
  double high = 0;
};
/// By ranks (sign test): any distribution, samples independent. Below six samples no two of them make
/// such an interval; it is then Student's of the mean, widened to the range of the samples, and of one
/// sample [0, infinity).
[[nodiscard]] MedianInterval median_interval(std::vector<double> samples);
/// From a summary where the samples are gone, as if they were normal: the standard error of a median,
/// sqrt(pi/2) * sigma / sqrt(count), with sigma = iqr / 1.349.
[[nodiscard]] MedianInterval median_interval(double median, double iqr, int count);

/// median(first) / median(second) and the 95 % bootstrap percentile interval of that ratio (Efron
/// 1979), from seeded resampling of each series.
struct MedianRatio {
  double ratio = 1;
  double low = 1;
  double high = 1;
};
[[nodiscard]] MedianRatio median_ratio(const std::vector<double>& first,
                                       const std::vector<double>& second);

/// From an A/A pair: the larger of how far the ratio is from 1 and half the width of its interval.
[[nodiscard]] double noise_floor(const MedianRatio& same);
/// True when the interval of `change` excludes 1 and the change exceeds the noise floor.
[[nodiscard]] bool distinguishable(const MedianRatio& change, double noise);

}  // namespace moe
