#include "cuda/occupied_device.h"

#include <chrono>
#include <stdexcept>
#include <thread>

#include "cuda/check.h"

namespace moe::cuda {
namespace {

constexpr unsigned long long kMostNanoseconds = 30'000'000'000ULL;

__global__ void hold_until_told(unsigned* started, volatile const unsigned* end) {
  unsigned long long start = 0;
  unsigned long long now = 0;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  atomicAdd_system(started, 1U);
  do {
    __nanosleep(1000);
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (*end == 0 && now - start < kMostNanoseconds);
}

}  // namespace

OccupiedDevice::OccupiedDevice(int multiprocessors)
    : stream_(unsigned{cudaStreamNonBlocking}), flags_(2 * sizeof(unsigned)) {
  auto* const flags = flags_.as<unsigned>();
  flags[0] = flags[1] = 0;
  int device = 0;
  int shared = 0;
  MOE_CUDA_CHECK(cudaGetDevice(&device));
  MOE_CUDA_CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  MOE_CUDA_CHECK(
      cudaFuncSetAttribute(hold_until_told, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  hold_until_told<<<static_cast<unsigned>(multiprocessors), 32, static_cast<std::size_t>(shared),
                    stream_.get()>>>(flags, flags + 1);
  MOE_CUDA_CHECK_LAUNCH("hold_until_told");
  const auto start = std::chrono::steady_clock::now();
  while (static_cast<volatile unsigned&>(flags[0]) < static_cast<unsigned>(multiprocessors)) {
    if (std::chrono::steady_clock::now() - start > std::chrono::seconds(10)) {
      static_cast<volatile unsigned&>(flags[1]) = 1;
      throw std::runtime_error("the blocks did not start");
    }
    std::this_thread::yield();
  }
}

OccupiedDevice::~OccupiedDevice() {
  static_cast<volatile unsigned&>(flags_.as<unsigned>()[1]) = 1;
  MOE_CUDA_CHECK_NOTHROW(cudaStreamSynchronize(stream_.get()));
}

bool OccupiedDevice::holds() const {
  return cudaStreamQuery(stream_.get()) == cudaErrorNotReady;
}

}  // namespace moe::cuda
