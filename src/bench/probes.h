// Probes of the processor's ceilings, made to be interleaved with timed forwards.
#pragma once

#include <string>
#include <vector>

#include "bench/probe_kernels.h"
#include "core/instrument.h"
#include "core/memory.h"
#include "moe/bench.h"

namespace moe {

class Probes final : public CeilingProbes {
 public:
  /// `isa` as in LayerOptions; threads > 0. Allocates the buffer of the read probe.
  Probes(const std::string& isa, int threads);
  void sample(ProbeSamples& samples) override;
  [[nodiscard]] std::string isa() const override;
  [[nodiscard]] int threads() const override { return threads_; }

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

/// Medians and spreads of what probes of `isa` and `threads` took.
[[nodiscard]] Ceilings summary(const ProbeSamples& samples, const std::string& isa, int threads);

}  // namespace moe
