// One lane of a warp; PTX ISA, elect.sync.
#pragma once

namespace moe::cuda {

/// True in one lane, always the same one. Where a condition of the thread's number chose it, the compiler
/// would not know that it is a single one and make a loop over lanes of every instruction whose operands
/// are the warp's (copies of boxes).
__device__ __forceinline__ bool elect_lane() {
  int elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.s32 %0, 1, 0, p;\n}"
               : "=r"(elected));
  return elected != 0;
}

}  // namespace moe::cuda
