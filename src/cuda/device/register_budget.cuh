// Moving registers between warpgroups; PTX ISA, setmaxnreg.
#pragma once

namespace moe::cuda {

/// Gives up registers down to kRegisters a thread. All warps of a warpgroup execute it.
template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  static_assert(kRegisters % 8 == 0, "setmaxnreg counts in eights");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Takes registers up to kRegisters a thread, waiting until they are free.
template <int kRegisters>
__device__ __forceinline__ void claim_registers() {
  static_assert(kRegisters % 8 == 0, "setmaxnreg counts in eights");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace moe::cuda
