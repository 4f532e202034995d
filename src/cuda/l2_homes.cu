#include "cuda/l2_homes.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <optional>
#include <vector>

#include "cuda/check.h"
#include "cuda/device/cluster.cuh"
#include "cuda/l2_partitions.h"
#include "cuda/measured_once.h"

namespace moe::cuda {
namespace {

constexpr std::uint64_t kPairBytes = 2 * L2Homes::kPieceBytes;
constexpr int kPairsOfPage = L2Homes::kPageBytes / kPairBytes;
constexpr int kRepetitions = 6;
/// Fewest cycles between near and far; on H200 they are more than a hundred.
constexpr int kLeastDifference = 64;
/// One in so many pages may be unclear.
constexpr std::size_t kMostUnclear = 20;

/// The least cycles until an addition in L2 has come back, which is made where the memory is. `none`: 0, which the
/// compiler does not know.
__device__ __forceinline__ int least_latency(std::uint32_t* at, std::uint32_t none) {
  int least = INT32_MAX;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    const long long start = clock64();
    const std::uint32_t value = atomicAdd(at, none);
    const std::uint32_t again = atomicAdd(at + (value & none), none);
    const long long end = clock64() + (again & none);
    least = min(least, static_cast<int>(end - start));
  }
  return least;
}

/// One thread a block: of `asked` pairs in each page, by how many cycles the second piece is farther from the first
/// partition.
__global__ void measure_pairs(std::byte* memory, std::uint64_t bytes, int asked, int count,
                              L2Partitions partitions, std::uint32_t none, int* differences) {
  const std::uint32_t self = multiprocessor();
  const bool second = (partitions.second[self / 32] >> self % 32 & 1) != 0;
  for (int i = static_cast<int>(blockIdx.x); i < count; i += static_cast<int>(gridDim.x)) {
    const std::uint64_t page = static_cast<std::uint64_t>(i / asked) * L2Homes::kPageBytes;
    const std::uint64_t pairs = min(L2Homes::kPageBytes, bytes - page) / kPairBytes;
    std::byte* const pair = memory + page + i % asked * pairs / asked * kPairBytes;
    const int first = least_latency(reinterpret_cast<std::uint32_t*>(pair), none);
    const int other =
        least_latency(reinterpret_cast<std::uint32_t*>(pair + L2Homes::kPieceBytes), none);
    differences[i] = second ? first - other : other - first;
  }
}

std::vector<int> measure(const DeviceFacts& facts, void* memory, std::uint64_t bytes, int asked,
                         cudaStream_t stream) {
  const std::uint64_t pages = (bytes + L2Homes::kPageBytes - 1) / L2Homes::kPageBytes;
  std::vector<int> differences(pages * static_cast<std::uint64_t>(asked));
  const DeviceBuffer measured(differences.size() * sizeof(int));
  measure_pairs<<<static_cast<unsigned>(facts.multiprocessors), 1, 0, stream>>>(
      static_cast<std::byte*>(memory), bytes, asked, static_cast<int>(differences.size()),
      l2_partitions(facts), 0, measured.as<int>());
  MOE_CUDA_CHECK_LAUNCH("measure_pairs");
  MOE_CUDA_CHECK(cudaMemcpyAsync(differences.data(), measured.data(), measured.size(),
                                 cudaMemcpyDeviceToHost, stream));
  MOE_CUDA_CHECK(cudaStreamSynchronize(stream));
  return differences;
}

/// Whether the first piece of a pair is behind the second partition.
std::optional<bool> in_second(int difference) {
  if (std::abs(difference) < kLeastDifference) return std::nullopt;
  return difference < 0;
}

bool parity(std::uint32_t bits) {
  return std::popcount(bits) % 2 != 0;
}

/// find_l2_hash() of a page of the device.
std::uint32_t measure_hash(const DeviceFacts& facts) {
  const DeviceBuffer memory(2 * L2Homes::kPageBytes);
  const auto begin = reinterpret_cast<std::uintptr_t>(memory.data());
  const std::uintptr_t into_page = begin % L2Homes::kPageBytes;
  void* const page =
      memory.as<std::byte>() + (into_page == 0 ? 0 : L2Homes::kPageBytes - into_page);
  const Stream stream;
  MOE_CUDA_CHECK(cudaMemsetAsync(page, 0, L2Homes::kPageBytes, stream.get()));
  return find_l2_hash(measure(facts, page, L2Homes::kPageBytes, kPairsOfPage, stream.get()).data());
}

/// The same, measured once a process; 0: not known.
std::uint32_t l2_hash(const DeviceFacts& facts) {
  static MeasuredOnce<std::uint32_t> all;
  return all.of(
      facts.ordinal, [&] { return measure_hash(facts); },
      [](std::uint32_t hash) { return hash != 0; });
}

}  // namespace

std::uint32_t find_l2_hash(const int* differences) {
  const auto home = [&](int pair) { return in_second(differences[pair]); };
  const std::optional<bool> first = home(0);
  if (!first) return 0;
  std::uint32_t mask = L2Homes::kPieceBytes;  // the pieces of a pair are behind either
  for (int pair = 1; pair < kPairsOfPage; pair *= 2) {
    if (home(pair) != first) mask |= static_cast<std::uint32_t>(pair * kPairBytes);
  }
  for (int pair = 0; pair < kPairsOfPage; ++pair) {
    const bool differs = parity(static_cast<std::uint32_t>(pair * kPairBytes) & mask);
    const std::optional<bool> is = home(pair);
    if (!is || *is != (*first != differs)) return 0;
  }
  // A unit's pieces are behind s, o, o, s, s, o, o, s.
  constexpr std::uint32_t kOfUnit = L2Homes::kUnitBytes - 1;
  return (mask & kOfUnit) == 3 * L2Homes::kPieceBytes ? mask : 0;
}

std::vector<std::uint32_t> find_l2_pages(const std::vector<int>& differences, std::uint64_t bytes,
                                         std::uint32_t hash) {
  std::vector<std::uint32_t> words(l2_page_words(bytes), 0);
  const std::size_t count = differences.size() / kPairsAsked;
  std::size_t unclear = 0;
  for (std::size_t page = 0; page < count; ++page) {
    const std::uint64_t page_bytes =
        std::min<std::uint64_t>(L2Homes::kPageBytes, bytes - page * L2Homes::kPageBytes);
    int votes = 0;
    for (std::uint64_t asked = 0; asked < kPairsAsked; ++asked) {
      const std::optional<bool> home = in_second(differences[page * kPairsAsked + asked]);
      const auto offset = static_cast<std::uint32_t>(asked_pair(asked, page_bytes));
      if (home) votes += *home != parity(offset & hash) ? 1 : -1;
    }
    if (std::abs(votes) <= kPairsAsked / 2) ++unclear;
    if (votes > 0) words[page / 32] |= 1U << page % 32;
  }
  return unclear * kMostUnclear > count ? std::vector<std::uint32_t>() : words;
}

L2Homes find_l2_homes(const DeviceFacts& facts, void* memory, std::uint64_t bytes,
                      std::uint32_t* pages, cudaStream_t stream) {
  if (bytes < L2Homes::kUnitBytes || !l2_partitions(facts).known ||
      reinterpret_cast<std::uintptr_t>(memory) % L2Homes::kPageBytes != 0) {
    return {};
  }
  const std::uint32_t hash = l2_hash(facts);
  if (hash == 0) return {};
  const std::vector<std::uint32_t> words =
      find_l2_pages(measure(facts, memory, bytes, kPairsAsked, stream), bytes, hash);
  if (words.empty()) return {};
  MOE_CUDA_CHECK(cudaMemcpyAsync(pages, words.data(), words.size() * sizeof(std::uint32_t),
                                 cudaMemcpyHostToDevice, stream));
  MOE_CUDA_CHECK(cudaStreamSynchronize(stream));
  return {.mask = hash / static_cast<std::uint32_t>(L2Homes::kUnitBytes), .pages = pages};
}

}  // namespace moe::cuda
