// Probes of the machine's ceilings, made to be interleaved with timed forwards.
#pragma once

#include <string>
#include <vector>

#include "bench/probe_kernels.h"
#include "core/memory.h"
#include "moe/bench.h"

namespace moe {

/// Samples of each kind, in GFLOP/s and GB/s.
struct ProbeSamples {
  std::vector<double> fp32;
  std::vector<double> bf16;
  std::vector<double> read;
  void append(const ProbeSamples& other);
};

class Probes {
 public:
  /// `isa` as in LayerOptions; threads > 0. Allocates the buffer of the read probe.
  Probes(const std::string& isa, int threads);
  /// One sample of each kind, a few milliseconds each.
  void sample(ProbeSamples& samples);
  [[nodiscard]] Ceilings summary(const ProbeSamples& samples) const;

 private:
  [[nodiscard]] double compute_rate(float (*kernel)(std::int64_t), double flops,
                                    std::int64_t iterations) const;
  [[nodiscard]] double read_rate() const;

  const ProbeKernels& kernels_;
  Isa isa_;
  int threads_;
  HostBuffer buffer_;
  std::int64_t fp32_iterations_ = 0;
  std::int64_t bf16_iterations_ = 0;
};

}  // namespace moe
