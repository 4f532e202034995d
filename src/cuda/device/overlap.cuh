// Programmatic dependent launch: how a kernel launched by launch_overlapping() (cuda/launch.h) keeps
// its order with its neighbours in the stream.
//
// Every such kernel waits first and lets the next one come only after that. Then, when a kernel
// starts, all kernels but the one just before it are complete, and what they wrote may be read even
// before the wait. The exception is a grouped_gemm_kernel whose rows the one before makes: it lets the next
// one come before it has waited, so that this must not read anything of that one before its own wait.
#pragma once

namespace moe::cuda {

/// Until the kernels before this one are complete and their writes visible. PTX ISA:
/// griddepcontrol.wait. Nothing before sm_90, where kernels of a stream do not overlap.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel of the stream become resident once every block has come here. PTX ISA:
/// griddepcontrol.launch_dependents.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace moe::cuda
