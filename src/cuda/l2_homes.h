// Which partition of L2 a piece of memory is behind (l2_partitions.h has which multiprocessors are near it), so that
// weights can be laid where those read them that are near.
//
// Pieces of 4 KiB are behind either partition by the parity of some bits of their address and of a bit that each page
// of 2 MiB has of its own, since physical addresses decide. Known of H100 (https://github.com/ademeure/cuda-side-boost)
// and measured here: on H200 bits 12, 13, 15, 17 and 19. What was found and what it is worth:
// docs/levels/level08_persistent.md, "Weights near those who read them".
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/backend.h"

namespace moe::cuda {

/// Of memory that begins on a page: eight pieces, a unit, are behind partition s, o, o, s, s, o, o, s, where o is the
/// other one than s, and s differs from unit to unit.
struct L2Homes {
  static constexpr std::uint64_t kPieceBytes = 4096;
  static constexpr std::uint64_t kUnitBytes = 8 * kPieceBytes;
  static constexpr std::uint64_t kPageBytes = 2 << 20;
  static constexpr std::uint32_t kUnitsOfPage = kPageBytes / kUnitBytes;

  std::uint32_t mask = 0;                ///< bits of a unit's number whose parity is part of s
  const std::uint32_t* pages = nullptr;  ///< the other part, a bit a page; null: nothing is known

  [[nodiscard]] constexpr bool known() const { return pages != nullptr; }
#ifdef __CUDACC__
  /// Bits of 32 pages from `page` on.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t of_pages(std::uint32_t page) const {
    const std::uint32_t* const words = pages + page / 32;
    return __funnelshift_r(words[0], words[1], page % 32);
  }
  /// s of a unit, given its page's bit in the lowest of `page_bits`.
  [[nodiscard]] __device__ __forceinline__ int of_unit(std::uint32_t unit,
                                                       std::uint32_t page_bits) const {
    return (__popc(unit & mask) ^ static_cast<int>(page_bits)) & 1;
  }
#endif
  bool operator==(const L2Homes&) const = default;
};

/// Words of a table of pages for so many bytes: two more than hold bits, for two are read at a time, also of the page
/// behind the last one.
constexpr std::size_t l2_page_words(std::uint64_t bytes) {
  return static_cast<std::size_t>((bytes + 32 * L2Homes::kPageBytes - 1) /
                                  (32 * L2Homes::kPageBytes)) +
         2;
}

/// `differences` [256]: by how many cycles the second piece of each pair of a page is farther from the first partition
/// than the first piece. Bits of an offset in the page whose parity says which of a pair is near, 1 << 12 among them; 0
/// where pieces do not lie as L2Homes says.
[[nodiscard]] std::uint32_t find_l2_hash(const int* differences);

/// Pairs of pieces that are measured in each page.
inline constexpr int kPairsAsked = 4;
/// Offset of number `asked` of them in a page of which `bytes`, two pairs or more, are there.
constexpr std::uint64_t asked_pair(std::uint64_t asked, std::uint64_t bytes) {
  constexpr std::uint64_t kPairBytes = 2 * L2Homes::kPieceBytes;
  return asked * (bytes / kPairBytes) / kPairsAsked * kPairBytes;
}
/// `differences` [kPairsAsked of each page of `bytes`], as above: the pages' bits, by vote, in l2_page_words() words.
/// Empty where more than one page in twenty is not clear. A wrong bit costs time, nothing else.
[[nodiscard]] std::vector<std::uint32_t> find_l2_pages(const std::vector<int>& differences,
                                                       std::uint64_t bytes, std::uint32_t hash);

/// Measures where `memory` of `bytes`, which nobody uses meanwhile and whose content stays, is, and fills `pages`
/// [l2_page_words(bytes)], device memory as well. Not known where the device's partitions are not, where memory does
/// not begin on a page, and where too many pages are not clear: others may keep the device busy. Synchronises
/// `stream`.
[[nodiscard]] L2Homes find_l2_homes(const DeviceFacts& facts, void* memory, std::uint64_t bytes,
                                    std::uint32_t* pages, cudaStream_t stream);

}  // namespace moe::cuda
