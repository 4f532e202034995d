#include "bench/probes.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "bench/statistics.h"
#include "core/threads.h"

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Results go here, so that no probe is optimised away.
std::atomic<std::uint64_t> sink{0};

constexpr double kComputeSeconds = 0.008;
constexpr std::size_t kReadChunk = std::size_t{256} << 10;

/// Several times the last-level cache, so that (nearly) every read comes from main memory.
std::size_t read_buffer_bytes() {
  constexpr std::size_t kLeast = std::size_t{256} << 20;
  const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  const std::size_t wanted = std::max(kLeast, cache > 0 ? 4 * static_cast<std::size_t>(cache) : 0);
  const std::size_t affordable = available_memory() / 8;
  return round_up(std::max(kReadChunk, std::min(wanted, affordable)), kReadChunk);
}

double relative_spread(const std::vector<double>& samples) {
  return samples.empty() ? 0 : interquartile_range(samples) / median(samples);
}

}  // namespace

const ProbeKernels& probe_kernels_for(Isa ceiling) {
  switch (std::min(ceiling, best_isa())) {
    case Isa::kAmx:
      return kProbeAmx;
    case Isa::kAvx512bf16:
      return kProbeAvx512bf16;
    case Isa::kAvx512f:
      return kProbeAvx512f;
    case Isa::kAvx2:
      return kProbeAvx2;
    case Isa::kScalar:
      break;
  }
  return kProbeBaseline;
}

void ProbeSamples::append(const ProbeSamples& other) {
  fp32.insert(fp32.end(), other.fp32.begin(), other.fp32.end());
  bf16.insert(bf16.end(), other.bf16.begin(), other.bf16.end());
  read.insert(read.end(), other.read.begin(), other.read.end());
}

Probes::Probes(const std::string& isa, int threads)
    : kernels_(probe_kernels_for(parse_isa(isa))),
      isa_(parse_isa(isa)),
      threads_(threads),
      buffer_(read_buffer_bytes()) {
  // Each thread touches its own part first: on machines with several memory nodes the pages then
  // spread over them.
#pragma omp parallel for schedule(static) num_threads(threads_)
  for (std::size_t at = 0; at < buffer_.size(); at += kReadChunk) {
    std::memset(buffer_.as<std::byte>() + at, 1, std::min(kReadChunk, buffer_.size() - at));
  }
  const auto iterations_for = [&](float (*kernel)(std::int64_t), double flops) {
    constexpr std::int64_t kTrial = 20000;
    const double rate = std::max(compute_rate(kernel, flops, kTrial),
                                 compute_rate(kernel, flops, kTrial));  // the first one warms up
    return static_cast<std::int64_t>(kComputeSeconds * rate * 1e9 / (flops * threads_)) + 1;
  };
  fp32_iterations_ = iterations_for(kernels_.multiply_add, kernels_.multiply_add_flops);
  if (kernels_.dot_bf16 != nullptr) {
    bf16_iterations_ = iterations_for(kernels_.dot_bf16, kernels_.dot_bf16_flops);
  }
}

double Probes::compute_rate(float (*kernel)(std::int64_t), double flops,
                            std::int64_t iterations) const {
  Clock::time_point start;
#pragma omp parallel num_threads(threads_)
  {
#pragma omp barrier
#pragma omp master
    start = Clock::now();
    sink += static_cast<std::uint64_t>(kernel(iterations));
  }
  return flops * static_cast<double>(iterations) * threads_ / seconds_since(start) / 1e9;
}

double Probes::read_rate() const {
  const std::size_t chunks = buffer_.size() / kReadChunk;
  std::atomic<std::size_t> next{0};
  Clock::time_point start;
#pragma omp parallel num_threads(threads_)
  {
#pragma omp barrier
#pragma omp master
    start = Clock::now();
    std::uint64_t sum = 0;
    for (std::size_t chunk = next++; chunk < chunks; chunk = next++) {
      sum += kernels_.read(buffer_.as<std::byte>() + chunk * kReadChunk, kReadChunk);
    }
    sink += sum;
  }
  return static_cast<double>(chunks * kReadChunk) / seconds_since(start) / 1e9;
}

void Probes::sample(ProbeSamples& samples) {
  samples.fp32.push_back(
      compute_rate(kernels_.multiply_add, kernels_.multiply_add_flops, fp32_iterations_));
  if (kernels_.dot_bf16 != nullptr) {
    samples.bf16.push_back(
        compute_rate(kernels_.dot_bf16, kernels_.dot_bf16_flops, bf16_iterations_));
  }
  samples.read.push_back(read_rate());
}

Ceilings Probes::summary(const ProbeSamples& samples) const {
  Ceilings ceilings;
  ceilings.isa = name_of(isa_);
  ceilings.threads = threads_;
  ceilings.samples = static_cast<int>(samples.read.size());
  if (samples.read.empty()) return ceilings;
  ceilings.fp32_gflops = median(samples.fp32);
  ceilings.fp32_spread = relative_spread(samples.fp32);
  if (!samples.bf16.empty()) {
    ceilings.bf16_gflops = median(samples.bf16);
    ceilings.bf16_spread = relative_spread(samples.bf16);
  }
  ceilings.read_gbs = median(samples.read);
  ceilings.read_spread = relative_spread(samples.read);
  return ceilings;
}

Ceilings measure_ceilings(const std::string& isa, int threads, int samples) {
  MOE_CHECK(samples >= 1, "samples={} must be at least 1", samples);
  MOE_CHECK(threads >= 0, "threads={} must not be negative", threads);
  Probes probes(isa, threads == 0 ? usable_threads() : threads);
  ProbeSamples taken;
  for (int i = 0; i < samples; ++i) probes.sample(taken);
  return probes.summary(taken);
}

Roof roof_of(const Problem& problem, std::int64_t active_experts, const Ceilings& ceilings) {
  const double peak = problem.dtype == DType::kBF16
                          ? ceilings.bf16_gflops.value_or(ceilings.fp32_gflops)
                          : ceilings.fp32_gflops;
  const double compute = useful_flops(problem.shape) / (peak * 1e3);  // GFLOP/s = 1e3 FLOP/us
  const double memory = minimum_bytes(problem, active_experts) / (ceilings.read_gbs * 1e3);
  return compute >= memory ? Roof{compute, Bound::kCompute} : Roof{memory, Bound::kMemory};
}

}  // namespace moe
