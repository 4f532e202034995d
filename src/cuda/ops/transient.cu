#include "cuda/ops/transient.h"

#include <limits>
#include <utility>

#include "core/text.h"
#include "cuda/check.h"

namespace moe::cuda {

MemoryPool::MemoryPool(const CudaDevice& device) : stream_(device.stream()) {
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location = {.type = cudaMemLocationTypeDevice, .id = device.facts().ordinal};
  MOE_CUDA_CHECK(cudaMemPoolCreate(&pool_, &properties));
  std::uint64_t keep = std::numeric_limits<std::uint64_t>::max();
  MOE_CUDA_CHECK(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep));
}
MemoryPool::~MemoryPool() {
  MOE_CUDA_CHECK_NOTHROW(cudaMemPoolDestroy(pool_));
}

TransientBuffer::TransientBuffer(const MemoryPool& pool, std::size_t bytes)
    : stream_(pool.stream()) {
  const cudaError_t status = cudaMallocFromPoolAsync(&data_, bytes, pool.get(), stream_);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("the device refused {} in forward", format_bytes(bytes)), bytes);
  }
  MOE_CUDA_CHECK(status);
}
TransientBuffer::TransientBuffer(TransientBuffer&& other) noexcept
    : stream_(other.stream_), data_(std::exchange(other.data_, nullptr)) {}
TransientBuffer& TransientBuffer::operator=(TransientBuffer&& other) noexcept {
  std::swap(stream_, other.stream_);
  std::swap(data_, other.data_);
  return *this;
}
TransientBuffer::~TransientBuffer() {
  if (data_ != nullptr) MOE_CUDA_CHECK_NOTHROW(cudaFreeAsync(data_, stream_));
}

TransientBuffer allocate(Context& context, const MemoryPool& pool, const char* what,
                         std::uint64_t bytes) {
  context.record("alloc", bytes, [&] { return std::string(what); });
  return {pool, bytes};
}

}  // namespace moe::cuda
