#include "bench/verdict.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstddef>

namespace moe {
namespace {

/// How much longer the same work takes in the second run when only the machine changed; negative when
/// it got faster.
double machine_change(const RowTimes& first, const RowTimes& second) {
  const bool known = first.machine_rate > 0 && second.machine_rate > 0;
  return known ? first.machine_rate / second.machine_rate - 1 : 0;
}

/// A probe that moved by less is steady: its own spread.
constexpr double kSteadyProbe = 0.05;
/// What a forward lost at most over what the worst probe lost, 3.0, with room (docs/benchmarking.md).
constexpr double kBeyondProbe = 4;

/// How much longer the same work takes in the second run by the probe that lost most; 0 where all are steady.
double worst_probe(const RowTimes& first, const RowTimes& second) {
  double worst = 0;
  for (std::size_t i = 0; i < std::min(first.probe_rates.size(), second.probe_rates.size()); ++i) {
    if (!(first.probe_rates[i] > 0 && second.probe_rates[i] > 0)) continue;
    worst = std::max(worst, first.probe_rates[i] / second.probe_rates[i] - 1);
  }
  return worst > kSteadyProbe ? worst : 0;
}

/// How much longer a forward may take in the second run because of the machine.
double machine_allowance(const RowTimes& first, const RowTimes& second) {
  return std::max(machine_change(first, second), kBeyondProbe * worst_probe(first, second));
}

/// `later` takes longer than `earlier`, by more than anything but the code explains.
bool slower(const RowTimes& earlier, const RowTimes& later, double effect) {
  return later.interval.low > earlier.interval.high &&
         later.median_us > earlier.median_us * (1 + effect) &&
         later.fastest_us > earlier.fastest_us * (1 + effect);
}

std::string percent(double relative) {
  return fmt::format("{:+.1f} %", 100 * relative);
}

/// What stands in the way of a verdict, the most telling first.
std::string reason_of(const RowTimes& first, const RowTimes& second, const Judgement& judgement,
                      const CompareLimits& limits) {
  if (!(judgement.ratio > 0)) return "a median is not a number";
  const double machine = machine_change(first, second);
  if (std::max(machine, -machine) > limits.limit) {
    return fmt::format("the machine itself: the same work takes {} by the probes",
                       percent(machine));
  }
  const double lost = worst_probe(first, second);
  const double gained = worst_probe(second, first);
  if (std::max(lost, gained) > 0) {
    return fmt::format("the machine itself: the same work takes {} by one of the probes",
                       percent(lost >= gained ? lost : 1 / (1 + gained) - 1));
  }
  const double noise = std::max(first.noise, second.noise);
  if (noise > limits.limit) return fmt::format("A/A noise of {:.1f} %", 100 * noise);
  const double disturbance = std::max(first.disturbance, second.disturbance);
  if (disturbance > limits.limit) {
    return fmt::format("in one run the median forward took {:.1f} % longer than the fastest",
                       100 * disturbance);
  }
  const double others = std::max(first.others, second.others);
  if (others > limits.limit) {
    return fmt::format("other programs took {:.1f} % of the processors' time in one run",
                       100 * others);
  }
  const bool separated = judgement.low > 1 || judgement.high < 1;
  if (separated) {
    return fmt::format("the fastest forwards differ by {}",
                       percent(second.fastest_us / first.fastest_us - 1));
  }
  return fmt::format("anything from {} to {} is possible", percent(judgement.low - 1),
                     percent(judgement.high - 1));
}

}  // namespace

std::string_view name_of(Verdict verdict) {
  constexpr std::array<std::string_view, 4> kNames = {"SAME", "FASTER", "SLOWER", "NOISY"};
  return kNames[static_cast<std::size_t>(verdict)];
}

Judgement judge(const RowTimes& first, const RowTimes& second, const CompareLimits& limits) {
  Judgement out;
  out.ratio = second.median_us / first.median_us;
  out.low = second.interval.low / first.interval.high;
  out.high = second.interval.high / first.interval.low;
  const double effect =
      std::max({limits.effect, limits.effect_us / first.median_us, first.noise, second.noise,
                first.disturbance, second.disturbance, first.others, second.others});
  const double machine = machine_change(first, second);
  if (slower(first, second, std::max(effect, machine_allowance(first, second)))) {
    out.verdict = Verdict::kSlower;
  } else if (slower(second, first, std::max(effect, machine_allowance(second, first)))) {
    out.verdict = Verdict::kFaster;
  } else if (out.ratio > 0 && out.low >= 1 / (1 + limits.limit) && out.high <= 1 + limits.limit &&
             std::max(machine, -machine) <= limits.limit) {
    out.verdict = Verdict::kSame;
  } else {
    out.reason = reason_of(first, second, out, limits);
  }
  return out;
}

}  // namespace moe
