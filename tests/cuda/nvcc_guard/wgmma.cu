// Four wgmma in flight on the same accumulators. With SERIALISED an ordinary addition touches them
// between two, and ptxas has to wait for each: what tools/nvcc_guard.sh must find. Never run.
#include <cstdint>

__global__ void four_wgmma(float* out, std::uint64_t a, std::uint64_t b) {
  float sums[4] = {};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "l"(a + step), "l"(b + step));
#ifdef SERIALISED
    sums[0] += 1.0F;
#endif
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])::"memory");
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = sums[i];
}
