// Error checks of the CUDA backend. Every call of the CUDA runtime goes through one of them.
#pragma once

#include <cuda_runtime_api.h>

namespace moe::cuda {

/// Throws Error(kCuda), or kOutOfMemory for cudaErrorMemoryAllocation, with the failing expression,
/// file and line. Clears the error first, so that the next call starts clean; errors that destroyed
/// the context (an illegal address, say) come back by themselves.
[[noreturn]] void throw_error(cudaError_t status, const char* expression, const char* file,
                              int line);

/// Throws if the launch of `kernel` just before was refused. With MOE_SYNC=1 in the environment also
/// waits for the device, so that an error inside the kernel names it.
void check_launch(const char* kernel, const char* file, int line);

}  // namespace moe::cuda

#define MOE_CUDA_CHECK(call)                                                \
  do {                                                                      \
    if (const cudaError_t moe_status = (call); moe_status != cudaSuccess) { \
      ::moe::cuda::throw_error(moe_status, #call, __FILE__, __LINE__);      \
    }                                                                       \
  } while (false)

/// For destructors: an error there has nowhere to go, but must not surface in a later call either.
#define MOE_CUDA_CHECK_NOTHROW(call)                                    \
  do {                                                                  \
    if ((call) != cudaSuccess) static_cast<void>(::cudaGetLastError()); \
  } while (false)

#define MOE_CUDA_CHECK_LAUNCH(kernel) ::moe::cuda::check_launch(kernel, __FILE__, __LINE__)
