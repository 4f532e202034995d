// Probes of a GPU's rates: dense GEMMs in fp32, bf16 and fp8, reading and copying its memory.
#pragma once

#include <memory>

#include "cuda/stopwatch.h"

namespace moe::cuda {

/// `device` and `stopwatch` outlive the probes.
[[nodiscard]] std::unique_ptr<CeilingProbes> make_ceiling_probes(CudaDevice& device,
                                                                 Stopwatch& stopwatch);

}  // namespace moe::cuda
