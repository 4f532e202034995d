#include "cuda/backend.h"

#include <cstdlib>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "core/text.h"
#include "cuda/check.h"

namespace moe::cuda {
namespace {

/// Only asked for its attributes: a device for which this build has no code refuses that.
__global__ void probe_kernel() {}

/// The part of a path that readers know: from src/ or tests/ on.
std::string_view path_in_repository(std::string_view path) {
  for (const std::string_view folder : {"/src/", "/tests/"}) {
    if (const std::size_t at = path.rfind(folder); at != std::string_view::npos) {
      return path.substr(at + 1);
    }
  }
  return path;
}

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string uuid_text(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (std::size_t i = 0; i < sizeof(uuid.bytes); ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text;
}

}  // namespace

void throw_error(cudaError_t status, const char* expression, const char* file, int line) {
  static_cast<void>(cudaGetLastError());
  throw Error(status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kCuda,
              fmt::format("{} ({}) from {} at {}:{}", cudaGetErrorString(status),
                          cudaGetErrorName(status), expression, path_in_repository(file), line));
}

void check_launch(const char* kernel, const char* file, int line) {
  static const bool synchronise = [] {
    const char* value = std::getenv("MOE_SYNC");
    return value != nullptr && std::string_view(value) == "1";
  }();
  cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess && synchronise) status = cudaDeviceSynchronize();
  if (status != cudaSuccess) throw_error(status, kernel, file, line);
}

DeviceFacts query_device(int ordinal) {
  cudaDeviceProp properties{};
  MOE_CUDA_CHECK(cudaGetDeviceProperties(&properties, ordinal));
  DeviceFacts facts{.ordinal = ordinal,
                    .name = properties.name,
                    .uuid = uuid_text(properties.uuid),
                    .major = properties.major,
                    .minor = properties.minor,
                    .multiprocessors = properties.multiProcessorCount,
                    .l2_bytes = static_cast<std::size_t>(properties.l2CacheSize),
                    .shared_bytes_per_block = properties.sharedMemPerBlockOptin,
                    .memory_bytes = properties.totalGlobalMem};
  MOE_CUDA_CHECK(cudaDriverGetVersion(&facts.driver_version));
  MOE_CUDA_CHECK(cudaRuntimeGetVersion(&facts.runtime_version));
  return facts;
}

Stream::Stream(unsigned flags) {
  MOE_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, flags));
}
Stream::~Stream() {
  if (owned_) MOE_CUDA_CHECK_NOTHROW(cudaStreamDestroy(stream_));
}

Event::Event(unsigned flags) {
  MOE_CUDA_CHECK(cudaEventCreateWithFlags(&event_, flags));
}
Event::~Event() {
  MOE_CUDA_CHECK_NOTHROW(cudaEventDestroy(event_));
}
void Event::record(cudaStream_t stream) const {
  MOE_CUDA_CHECK(cudaEventRecord(event_, stream));
}
void Event::wait() const {
  MOE_CUDA_CHECK(cudaEventSynchronize(event_));
}
double Event::milliseconds_since(const Event& start) const {
  float milliseconds = 0;
  MOE_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.event_, event_));
  return milliseconds;
}

DeviceBuffer::DeviceBuffer(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const cudaError_t status = cudaMalloc(&data_, bytes);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    std::size_t free = 0;
    std::size_t total = 0;
    MOE_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("the device refused {}: {} of {} are free", format_bytes(bytes),
                            format_bytes(free), format_bytes(total)),
                bytes);
  }
  MOE_CUDA_CHECK(status);
}
DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}
DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) MOE_CUDA_CHECK_NOTHROW(cudaFree(data_));
}

PinnedBuffer::PinnedBuffer(std::size_t bytes) {
  MOE_CUDA_CHECK(cudaMallocHost(&data_, bytes));
}
PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)) {}
PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  return *this;
}
PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) MOE_CUDA_CHECK_NOTHROW(cudaFreeHost(data_));
}

CudaDevice::CudaDevice(const LayerOptions& options) {
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess || count == 0) {
    static_cast<void>(cudaGetLastError());
    int driver = 0;
    int runtime = 0;
    static_cast<void>(cudaDriverGetVersion(&driver));
    static_cast<void>(cudaRuntimeGetVersion(&runtime));
    unavailable_ =
        fmt::format("no usable CUDA device: {} ({}, built with CUDA {})",
                    status == cudaSuccess ? "none found" : cudaGetErrorString(status),
                    driver == 0 ? "no driver" : "driver for CUDA " + version_text(driver),
                    version_text(runtime));
    return;
  }
  int ordinal = 0;
  MOE_CUDA_CHECK(cudaGetDevice(&ordinal));
  facts_ = query_device(ordinal);
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, probe_kernel) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    unavailable_ = fmt::format("{} has compute capability {}.{}, for which this build has no code",
                               facts_.name, facts_.major, facts_.minor);
    return;
  }
  stream_ = options.stream == nullptr
                ? std::make_unique<Stream>()
                : std::make_unique<Stream>(static_cast<cudaStream_t>(options.stream));
}

CudaDevice::~CudaDevice() {
  // The caller's stream may still read the workspace.
  if (stream_ != nullptr) MOE_CUDA_CHECK_NOTHROW(cudaStreamSynchronize(stream()));
}

std::uint64_t CudaDevice::available_memory() const {
  std::size_t free = 0;
  std::size_t total = 0;
  MOE_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

void CudaDevice::check_reachable(const char* name, const TensorView& tensor) const {
  cudaPointerAttributes attributes{};
  MOE_CUDA_CHECK(cudaPointerGetAttributes(&attributes, tensor.data));
  MOE_CHECK(attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged,
            "{} {} is host memory, but the CUDA backend needs device memory", name,
            tensor.describe());
  MOE_CHECK(attributes.type == cudaMemoryTypeManaged || attributes.device == facts_.ordinal,
            "{} {} lies on device {}, but the layer runs on device {}", name, tensor.describe(),
            attributes.device, facts_.ordinal);
}

void* CudaDevice::allocate_workspace(std::size_t bytes) {
  workspace_ = DeviceBuffer(bytes);
  // All bits set is NaN in fp32 and bf16 and -1 as an index: a kernel that reads what no kernel
  // wrote fails on every machine, and not only where the memory happened to be dirty.
  MOE_CUDA_CHECK(cudaMemsetAsync(workspace_.data(), 0xff, bytes, stream()));
  return workspace_.data();
}

std::shared_ptr<void> CudaDevice::allocate(std::size_t bytes) {
  const auto buffer = std::make_shared<DeviceBuffer>(bytes);
  return {buffer, buffer->data()};
}

void CudaDevice::synchronise() {
  MOE_CUDA_CHECK(cudaStreamSynchronize(stream()));
}

void CudaDevice::copy_from_host(void* to, const void* from, std::size_t bytes) {
  MOE_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()));
  synchronise();
}

void CudaDevice::copy_to_host(void* to, const void* from, std::size_t bytes) {
  MOE_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream()));
  synchronise();
}

std::unique_ptr<Device> make_device(const LayerOptions& options) {
  return std::make_unique<CudaDevice>(options);
}

}  // namespace moe::cuda
