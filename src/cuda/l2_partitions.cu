#include "cuda/l2_partitions.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "cuda/check.h"
#include "cuda/device/cluster.cuh"
#include "cuda/measured_once.h"

namespace moe::cuda {
namespace {

constexpr int kAddresses = 32;
constexpr int kStride = 4096 + 128;  // bytes: lines of other pages, in no pattern of powers of two
constexpr int kRepetitions = 4;
constexpr int kLaunches = 4;  // at most, until every multiprocessor has had a block

/// One thread a block, one block a multiprocessor: the least cycles that an addition in L2 takes, which is made
/// where the memory is. `data` is zeros and stays so.
__global__ void measure_l2_latencies(std::uint32_t* data, std::uint32_t* latencies,
                                     int multiprocessors) {
  const std::uint32_t self = multiprocessor();
  if (self >= static_cast<std::uint32_t>(multiprocessors)) return;
  for (int i = 0; i < kAddresses; ++i) {
    const int address =
        (i + static_cast<int>(blockIdx.x)) % kAddresses;  // not all the same at once
    std::uint32_t* const at = data + address * (kStride / sizeof(std::uint32_t));
    auto least = ~0U;
    for (int repetition = 0; repetition < kRepetitions; ++repetition) {
      const long long start = clock64();
      std::uint32_t zero = atomicAdd(at, 0U);
      zero = atomicAdd(at + zero, 0U);  // begins when the first has come back
      const long long end = clock64() + zero;
      least = min(least, static_cast<std::uint32_t>(end - start));
    }
    latencies[self * kAddresses + address] = least;
  }
}

L2Partitions measure(const DeviceFacts& facts) {
  if (facts.multiprocessors > L2Partitions::kMostMultiprocessors) return {};
  const auto bytes = static_cast<std::size_t>(kAddresses) * kStride;
  const auto count = static_cast<std::size_t>(facts.multiprocessors) * kAddresses;
  const DeviceBuffer data(bytes);
  const DeviceBuffer latencies(count * sizeof(std::uint32_t));
  const Stream stream;
  MOE_CUDA_CHECK(cudaMemsetAsync(data.data(), 0, bytes, stream.get()));
  MOE_CUDA_CHECK(cudaMemsetAsync(latencies.data(), 0, latencies.size(), stream.get()));
  MOE_CUDA_CHECK(cudaFuncSetAttribute(measure_l2_latencies,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(facts.shared_bytes_per_block)));
  std::vector<std::uint32_t> measured(count);
  for (int launch = 0; launch < kLaunches; ++launch) {
    // All of a multiprocessor's shared memory: no two blocks are on one at the same time.
    measure_l2_latencies<<<static_cast<unsigned>(facts.multiprocessors), 1,
                           facts.shared_bytes_per_block, stream.get()>>>(
        data.as<std::uint32_t>(), latencies.as<std::uint32_t>(), facts.multiprocessors);
    check_launch("measure_l2_latencies", __FILE__, __LINE__);
    MOE_CUDA_CHECK(cudaMemcpyAsync(measured.data(), latencies.data(), latencies.size(),
                                   cudaMemcpyDeviceToHost, stream.get()));
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    const L2Partitions found =
        find_l2_partitions(measured.data(), facts.multiprocessors, kAddresses);
    if (found.known) return found;
  }
  return {};
}

}  // namespace

L2Partitions find_l2_partitions(const std::uint32_t* latencies, int multiprocessors,
                                int addresses) {
  if (multiprocessors > L2Partitions::kMostMultiprocessors) return {};
  const auto columns = static_cast<std::size_t>(addresses);
  const auto rows = static_cast<std::size_t>(multiprocessors);
  // What a latency is above that of its address and of its multiprocessor: one sign where the address is near,
  // the other where it is far.
  std::vector<double> rest(rows * columns);
  std::vector<double> of_address(columns, 0);
  for (std::size_t at = 0; at < rest.size(); ++at) {
    if (latencies[at] == 0) return {};
    rest[at] = latencies[at];
    of_address[at % columns] += rest[at] / multiprocessors;
  }
  for (std::size_t row = 0; row < rows; ++row) {
    double mean = 0;
    for (std::size_t i = 0; i < columns; ++i) {
      mean += (rest[row * columns + i] - of_address[i]) / addresses;
    }
    for (std::size_t i = 0; i < columns; ++i) rest[row * columns + i] -= of_address[i] + mean;
  }
  constexpr double kAlike = 0.8;  // correlation; 1.00 on H200
  L2Partitions found{.known = true};
  std::size_t in_second = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    double product = 0;
    double square = 0;
    double square_of_first = 0;
    for (std::size_t i = 0; i < columns; ++i) {
      product += rest[row * columns + i] * rest[i];
      square += rest[row * columns + i] * rest[row * columns + i];
      square_of_first += rest[i] * rest[i];
    }
    const double alike = product / std::sqrt(square * square_of_first);
    if (!(std::abs(alike) >= kAlike)) return {};  // NaN, too
    if (alike > 0) continue;
    found.second[row / 32] |= 1U << row % 32;
    ++in_second;
  }
  const bool both = in_second >= rows / 4 && rows - in_second >= rows / 4;
  return both ? found : L2Partitions{};
}

const L2Partitions& l2_partitions(const DeviceFacts& facts) {
  static MeasuredOnce<L2Partitions> all;
  return all.of(
      facts.ordinal, [&] { return measure(facts); },
      [](const L2Partitions& partitions) { return partitions.known; });
}

}  // namespace moe::cuda
