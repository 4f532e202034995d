// Ceilings out of probes of any backend, and the roof of a problem under them.
#include <algorithm>
#include <array>

#include "bench/probes.h"
#include "core/check.h"
#include "core/statistics.h"

namespace moe {
namespace {

double relative_spread(const std::vector<double>& samples) {
  return samples.empty() ? 0 : interquartile_range(samples) / median(samples);
}

std::optional<double> median_if_any(const std::vector<double>& samples) {
  return samples.empty() ? std::nullopt : std::optional<double>(median(samples));
}

void append(std::vector<double>& to, const std::vector<double>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

std::string_view name_of(Cache cache) {
  constexpr std::array<std::string_view, 3> kNames = {"hot", "cold", "dirty"};
  return kNames[static_cast<std::size_t>(cache)];
}

void ProbeSamples::append(const ProbeSamples& other) {
  moe::append(fp32, other.fp32);
  moe::append(bf16, other.bf16);
  moe::append(fp8, other.fp8);
  moe::append(read, other.read);
  moe::append(copy, other.copy);
  moe::append(empty_us, other.empty_us);
}

Ceilings summary(const ProbeSamples& samples, const std::string& isa, int threads) {
  Ceilings ceilings;
  ceilings.isa = isa;
  ceilings.threads = threads;
  ceilings.samples = static_cast<int>(samples.read.size());
  if (samples.read.empty()) return ceilings;
  ceilings.fp32_gflops = median(samples.fp32);
  ceilings.fp32_spread = relative_spread(samples.fp32);
  ceilings.bf16_gflops = median_if_any(samples.bf16);
  ceilings.bf16_spread = relative_spread(samples.bf16);
  ceilings.fp8_gflops = median_if_any(samples.fp8);
  ceilings.fp8_spread = relative_spread(samples.fp8);
  ceilings.read_gbs = median(samples.read);
  ceilings.read_spread = relative_spread(samples.read);
  ceilings.copy_gbs = median_if_any(samples.copy);
  ceilings.copy_spread = relative_spread(samples.copy);
  ceilings.empty_us = median_if_any(samples.empty_us);
  return ceilings;
}

Ceilings measure_ceilings(const LayerOptions& options, int samples) {
  MOE_CHECK(samples >= 1, "samples={} must be at least 1", samples);
  MOE_CHECK(options.threads >= 0, "threads={} must not be negative", options.threads);
  if (const std::string reason = why_unusable(options.backend); !reason.empty()) {
    throw Error(ErrorCode::kUnsupported, reason);
  }
  const std::unique_ptr<Instrument> instrument = make_instrument(options);
  const std::unique_ptr<CeilingProbes> probes = instrument->make_probes();
  ProbeSamples taken;
  for (int i = 0; i < samples; ++i) probes->sample(taken);
  return summary(taken, probes->isa(), probes->threads());
}

Roof roof_of(const Problem& problem, std::int64_t active_experts, const Ceilings& ceilings) {
  const double peak = problem.dtype == DType::kBF16
                          ? ceilings.bf16_gflops.value_or(ceilings.fp32_gflops)
                          : ceilings.fp32_gflops;
  const double compute = useful_flops(problem) / (peak * 1e3);  // GFLOP/s = 1e3 FLOP/us
  const double memory = minimum_bytes(problem, active_experts) / (ceilings.read_gbs * 1e3);
  return compute >= memory ? Roof{compute, Bound::kCompute} : Roof{memory, Bound::kMemory};
}

double active_weight_bytes(const Problem& problem, std::int64_t active_experts) {
  return 3.0 * static_cast<double>(active_experts) * static_cast<double>(problem.shape.hidden) *
         static_cast<double>(problem.shape.intermediate) *
         static_cast<double>(size_of(problem.dtype));
}

double stream_floor_us(const Problem& problem, std::int64_t active_experts,
                       const Ceilings& ceilings) {
  return active_weight_bytes(problem, active_experts) / (ceilings.read_gbs * 1e3) +
         ceilings.empty_us.value_or(0);
}

}  // namespace moe
