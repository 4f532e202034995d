// core/fingerprint.h of device memory, computed where it lies.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace moe::cuda {

/// Queues: *sum = the fingerprint of `bytes` bytes. `sum` is device memory; `data` may have any
/// alignment.
void fingerprint(const void* data, std::size_t bytes, std::uint64_t* sum, cudaStream_t stream);

}  // namespace moe::cuda
