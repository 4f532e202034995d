// Memory that forward allocates itself: the lesson of levels 0 to 2.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/level.h"
#include "cuda/backend.h"

namespace moe::cuda {

/// A pool for stream-ordered allocation that keeps what was freed until it is destroyed, as the
/// caching allocators of frameworks do: a second forward pays for the calls, not for the pages.
class MemoryPool {
 public:
  explicit MemoryPool(const CudaDevice& device);
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;
  ~MemoryPool();
  [[nodiscard]] cudaMemPool_t get() const { return pool_; }
  [[nodiscard]] cudaStream_t stream() const { return stream_; }

 private:
  cudaMemPool_t pool_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

/// Allocated and freed in stream order; kernels launched before the destructor may still use it.
class TransientBuffer {
 public:
  TransientBuffer() = default;  // of nothing
  TransientBuffer(const MemoryPool& pool, std::size_t bytes);
  TransientBuffer(TransientBuffer&& other) noexcept;
  TransientBuffer& operator=(TransientBuffer&& other) noexcept;
  TransientBuffer(const TransientBuffer&) = delete;
  TransientBuffer& operator=(const TransientBuffer&) = delete;
  ~TransientBuffer();

  /// Bytes that a buffer of `bytes` occupies at most: the pool maps whole pages of 2 MiB.
  static constexpr std::uint64_t footprint(std::uint64_t bytes) {
    return round_up(bytes, std::size_t{2} << 20);
  }

  [[nodiscard]] void* data() const { return data_; }
  template <class Element>
  [[nodiscard]] Element* as() const {
    return static_cast<Element*>(data_);
  }

 private:
  cudaStream_t stream_ = nullptr;
  void* data_ = nullptr;
};

/// A buffer, seen by the trace as an "alloc".
[[nodiscard]] TransientBuffer allocate(Context& context, const MemoryPool& pool, const char* what,
                                       std::uint64_t bytes);

}  // namespace moe::cuda
