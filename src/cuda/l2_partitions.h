// Which multiprocessors are near which half of L2.
//
// L2 of compute capability 8.0 and 9.0 is two partitions, each of which caches memory for the multiprocessors
// that are connected to it (NVIDIA A100 whitepaper, "A100 L2 cache"). What a multiprocessor reads of memory
// behind the other one crosses a link between them; on H200 that is 97 % busy while all stream data of their own
// (docs/levels/level08_persistent.md, "Two halves of L2"). Multiprocessors that read the same should be of one.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/backend.h"

namespace moe::cuda {

/// A set of multiprocessors: those near the second partition.
struct L2Partitions {
  static constexpr int kMostMultiprocessors = 256;
  std::array<std::uint32_t, kMostMultiprocessors / 32> second = {};
  bool known = false;  ///< false: nothing of it is, and `second` is empty

  bool operator==(const L2Partitions&) const = default;
};

/// Latencies [multiprocessors][addresses] of additions in L2, in cycles; 0: not measured. Known where all were
/// measured and multiprocessors' latencies fall into two opposite patterns, either of which at least a quarter have.
[[nodiscard]] L2Partitions find_l2_partitions(const std::uint32_t* latencies, int multiprocessors,
                                              int addresses);

/// Of a device: measured once a process; where that says nothing (others may keep the device busy), once more with
/// each of the next calls, a few times.
[[nodiscard]] const L2Partitions& l2_partitions(const DeviceFacts& facts);

}  // namespace moe::cuda
