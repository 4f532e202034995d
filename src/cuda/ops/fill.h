// Seeded normal values, made on the device: operands of GEMMs that are timed. On zeros the clocks of a
// power-limited GPU, and so the rates, are higher.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "moe/config.h"

namespace moe::cuda {

/// out[i] ~ N(0, deviation^2). `seed` tells fillings apart.
void fill_normal(DType dtype, void* out, std::int64_t count, float deviation, std::uint64_t seed,
                 cudaStream_t stream);
/// The same in FP8 e4m3.
void fill_normal_e4m3(void* out, std::int64_t count, float deviation, std::uint64_t seed,
                      cudaStream_t stream);

}  // namespace moe::cuda
