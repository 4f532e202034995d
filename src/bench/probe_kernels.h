// The inner loops of the probes, one set per instruction-set tier. As for the levels' kernels, only
// the file of a tier is compiled with that tier's flags.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.h"

namespace moe {

struct ProbeKernels {
  Isa isa = Isa::kScalar;
  /// `iterations` rounds of independent fp32 multiply-adds in registers; returns a value that
  /// depends on all of them.
  float (*multiply_add)(std::int64_t iterations) = nullptr;
  double multiply_add_flops = 0;  ///< per iteration
  /// The same with bf16 products and fp32 sums; null when the tier has no such instruction.
  float (*dot_bf16)(std::int64_t iterations) = nullptr;
  double dot_bf16_flops = 0;
  /// Reads `bytes` (a multiple of kReadStep) from a 64-byte-aligned address; returns their sum.
  std::uint64_t (*read)(const std::byte* from, std::size_t bytes) = nullptr;
};

inline constexpr std::size_t kReadStep = 512;

/// The set of the highest tier not above `ceiling`.
[[nodiscard]] const ProbeKernels& probe_kernels_for(Isa ceiling);

extern const ProbeKernels kProbeBaseline;
extern const ProbeKernels kProbeAvx2;
extern const ProbeKernels kProbeAvx512f;
extern const ProbeKernels kProbeAvx512bf16;
extern const ProbeKernels kProbeAmx;

}  // namespace moe
