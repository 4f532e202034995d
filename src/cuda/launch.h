// Launching a kernel that may start while its predecessor in the stream drains.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "cuda/check.h"

namespace moe::cuda {

/// Whether a kernel synchronises its whole grid, which then has to be resident at once.
enum class GridBarrier { kNo, kYes };

/// Launches `kernel` with programmatic stream serialisation: its blocks may become resident as soon
/// as every block of the kernel before it has called allow_next_kernel() or ended. So `kernel` must
/// call wait_for_previous_kernel() (cuda/device/overlap.cuh) before it touches what an earlier
/// kernel writes or reads. On devices before sm_90 it is an ordinary launch.
template <class... Parameters, class... Arguments>
void launch_overlapping(const char* name, GridBarrier barrier, void (*kernel)(Parameters...),
                        dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                        Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = barrier == GridBarrier::kYes ? 2 : 1;
  MOE_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
  check_launch(name, __FILE__, __LINE__);
}
template <class... Parameters, class... Arguments>
void launch_overlapping(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                        std::size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  launch_overlapping(name, GridBarrier::kNo, kernel, grid, block, shared_bytes, stream,
                     std::forward<Arguments>(arguments)...);
}

}  // namespace moe::cuda
