// Waiting on the device that ends, one way or the other.
#pragma once

namespace moe::cuda {

/// Repeats `arrived` until it says yes. A wait of seconds is a bug, and a trap reports it where a
/// hang would cost the device. NOTE: the trap stands behind the loop; inside it, ptxas spilled
/// registers around the wgmmas.
template <class Arrived>
__device__ __forceinline__ void wait_or_trap(Arrived&& arrived) {
  constexpr long long kHang = 4'000'000'000LL;  // cycles, about 2 s
  if (arrived()) return;
  const long long start = clock64();
  do {
    if (arrived()) return;
  } while (clock64() - start < kHang);
  __trap();
}

}  // namespace moe::cuda
