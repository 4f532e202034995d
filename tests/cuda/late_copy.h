// A kernel that is late with what it writes, after it has let the next one start.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace moe::cuda {

/// Copies `words` 32-bit words 50 microseconds after a kernel launched by launch_overlapping() may start.
void copy_late(void* to, const void* from, std::size_t words, cudaStream_t stream);

}  // namespace moe::cuda
