#include "bench/probes.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

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

std::string Probes::isa() const {
  return std::string(name_of(isa_));
}

}  // namespace moe
