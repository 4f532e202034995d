#include "cuda/nvml.h"

#include <array>
#include <utility>

#include "core/check.h"
#include "cuda/dynamic_library.h"

namespace moe::cuda {
namespace {

// NVML's public ABI, as far as it is used here. Values of the enums are part of it.
using Status = int;  // nvmlReturn_t
constexpr Status kSuccess = 0;
using Handle = void*;        // nvmlDevice_t
constexpr int kClockSm = 1;  // nvmlClockType_t
constexpr int kClockMemory = 2;
constexpr int kSensorGpu = 0;        // nvmlTemperatureSensors_t
constexpr unsigned kTextBytes = 96;  // NVML's longest buffers: names and UUIDs of version 2

struct Memory {  // nvmlMemory_t
  unsigned long long total = 0;
  unsigned long long free = 0;
  unsigned long long used = 0;
};

struct PciInfo {  // nvmlPciInfo_t of nvmlDeviceGetPciInfo_v3
  std::array<char, 16> bus_id_legacy{};
  unsigned domain = 0;
  unsigned bus = 0;
  unsigned device = 0;
  unsigned device_id = 0;
  unsigned subsystem_id = 0;
  std::array<char, 32> bus_id{};
};

constexpr std::uint64_t kGpuIdle = 0x1;
constexpr std::array<std::pair<std::uint64_t, const char*>, 8> kThrottleReasons = {
    {{0x2, "application clocks setting"},
     {0x4, "sw power cap"},
     {0x8, "hw slowdown"},
     {0x10, "sync boost"},
     {0x20, "sw thermal slowdown"},
     {0x40, "hw thermal slowdown"},
     {0x80, "hw power brake"},
     {0x100, "display clock setting"}}};

}  // namespace

std::string throttle_text(std::uint64_t reasons) {
  std::string text;
  const auto add = [&text](const std::string& name) { text += (text.empty() ? "" : ", ") + name; };
  std::uint64_t known = kGpuIdle;
  for (const auto& [bit, name] : kThrottleReasons) {
    known |= bit;
    if ((reasons & bit) != 0) add(name);
  }
  if (const std::uint64_t other = reasons & ~known; other != 0) {
    add(fmt::format("unknown reason 0x{:x}", other));
  }
  return text;
}

/// The open library, initialised. Optional functions are nullptr in drivers that lack them.
struct NvmlSensor::Library {
  std::unique_ptr<DynamicLibrary> file;
  Status (*shutdown)() = nullptr;
  const char* (*error_string)(Status) = nullptr;
  Status (*device_count)(unsigned*) = nullptr;
  Status (*handle_by_index)(unsigned, Handle*) = nullptr;
  Status (*handle_by_bus_id)(const char*, Handle*) = nullptr;
  Status (*clock)(Handle, int, unsigned*) = nullptr;
  Status (*max_clock)(Handle, int, unsigned*) = nullptr;
  Status (*power)(Handle, unsigned*) = nullptr;
  Status (*power_limit)(Handle, unsigned*) = nullptr;
  Status (*temperature)(Handle, int, unsigned*) = nullptr;
  Status (*throttle_reasons)(Handle, unsigned long long*) = nullptr;
  Status (*uuid)(Handle, char*, unsigned) = nullptr;
  Status (*name)(Handle, char*, unsigned) = nullptr;
  Status (*pci_info)(Handle, PciInfo*) = nullptr;
  Status (*memory)(Handle, Memory*) = nullptr;
  Status (*compute_capability)(Handle, int*, int*) = nullptr;
  Status (*driver_version)(char*, unsigned) = nullptr;
  Status (*cuda_version)(int*) = nullptr;

  Library() = default;
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    if (shutdown != nullptr) shutdown();
  }

  static std::unique_ptr<Library> open(const std::string& path, std::string& reason);

  /// What `function` writes for these arguments; a default value when it is missing or refuses.
  template <class Value, class... Parameters, class... Arguments>
  static Value ask(Status (*function)(Parameters...), Arguments... arguments) {
    Value value{};
    if (function == nullptr || function(arguments..., &value) != kSuccess) return Value{};
    return value;
  }
  template <class... Parameters, class... Arguments>
  static std::string ask_text(Status (*function)(Parameters...), Arguments... arguments) {
    std::array<char, kTextBytes> text{};
    if (function == nullptr || function(arguments..., text.data(), kTextBytes) != kSuccess)
      return "";
    text.back() = '\0';
    return text.data();
  }
};

std::unique_ptr<NvmlSensor::Library> NvmlSensor::Library::open(const std::string& path,
                                                               std::string& reason) {
  auto library = std::make_unique<Library>();
  library->file = DynamicLibrary::open({path}, reason);
  if (library->file == nullptr) {
    reason = fmt::format("no NVML: {}", reason);
    return nullptr;
  }
  const DynamicLibrary& file = *library->file;
  Status (*initialise)() = nullptr;
  Status (*shutdown)() = nullptr;
  file.find("nvmlErrorString", library->error_string);
  const bool complete = file.find("nvmlInit_v2", initialise) &&
                        file.find("nvmlShutdown", shutdown) &&
                        file.find("nvmlDeviceGetHandleByPciBusId_v2", library->handle_by_bus_id) &&
                        file.find("nvmlDeviceGetClockInfo", library->clock);
  if (!complete) {
    reason = fmt::format("no NVML: {} lacks functions that every driver since 2013 has", path);
    return nullptr;
  }
  if (const Status status = initialise(); status != kSuccess) {
    reason = fmt::format("no NVML: {} does not start: {}", path,
                         library->error_string == nullptr ? fmt::format("error {}", status)
                                                          : library->error_string(status));
    return nullptr;
  }
  library->shutdown = shutdown;  // from here on there is something to shut down
  file.find("nvmlDeviceGetCount_v2", library->device_count);
  file.find("nvmlDeviceGetHandleByIndex_v2", library->handle_by_index);
  file.find("nvmlDeviceGetMaxClockInfo", library->max_clock);
  file.find("nvmlDeviceGetPowerUsage", library->power);
  file.find("nvmlDeviceGetEnforcedPowerLimit", library->power_limit);
  file.find("nvmlDeviceGetTemperature", library->temperature);
  if (!file.find("nvmlDeviceGetCurrentClocksEventReasons", library->throttle_reasons)) {
    file.find("nvmlDeviceGetCurrentClocksThrottleReasons",
              library->throttle_reasons);  // before 535
  }
  file.find("nvmlDeviceGetUUID", library->uuid);
  file.find("nvmlDeviceGetName", library->name);
  file.find("nvmlDeviceGetPciInfo_v3", library->pci_info);
  file.find("nvmlDeviceGetMemoryInfo", library->memory);
  file.find("nvmlDeviceGetCudaComputeCapability", library->compute_capability);
  file.find("nvmlSystemGetDriverVersion", library->driver_version);
  file.find("nvmlSystemGetCudaDriverVersion_v2", library->cuda_version);
  return library;
}

NvmlSensor::NvmlSensor(std::unique_ptr<Library> library) : library_(std::move(library)) {}
NvmlSensor::~NvmlSensor() = default;

std::unique_ptr<NvmlSensor> NvmlSensor::open(const std::string& pci_bus_id, std::string& reason,
                                             const std::string& library) {
  reason.clear();
  auto opened = Library::open(library, reason);
  if (opened == nullptr) return nullptr;
  std::unique_ptr<NvmlSensor> sensor(new NvmlSensor(std::move(opened)));
  const Library& nvml = *sensor->library_;
  if (const Status status = nvml.handle_by_bus_id(pci_bus_id.c_str(), &sensor->device_);
      status != kSuccess) {
    reason = fmt::format(
        "NVML shows no GPU at {}: {}", pci_bus_id,
        nvml.error_string == nullptr ? fmt::format("error {}", status) : nvml.error_string(status));
    return nullptr;
  }
  sensor->uuid_ = Library::ask_text(nvml.uuid, sensor->device_);
  sensor->driver_version_ = Library::ask_text(nvml.driver_version);
  sensor->max_sm_clock_mhz_ =
      static_cast<int>(Library::ask<unsigned>(nvml.max_clock, sensor->device_, kClockSm));
  sensor->power_limit_w_ = Library::ask<unsigned>(nvml.power_limit, sensor->device_) / 1000.0;
  return sensor;
}

NvmlReading NvmlSensor::read() const {
  const Library& nvml = *library_;
  NvmlReading reading;
  reading.sm_clock_mhz = static_cast<int>(Library::ask<unsigned>(nvml.clock, device_, kClockSm));
  reading.memory_clock_mhz =
      static_cast<int>(Library::ask<unsigned>(nvml.clock, device_, kClockMemory));
  reading.power_w = Library::ask<unsigned>(nvml.power, device_) / 1000.0;
  reading.temperature_c =
      static_cast<int>(Library::ask<unsigned>(nvml.temperature, device_, kSensorGpu));
  unsigned long long reasons = 0;
  if (nvml.throttle_reasons != nullptr && nvml.throttle_reasons(device_, &reasons) == kSuccess) {
    reading.throttle_reasons = reasons;
    reading.throttle_text = cuda::throttle_text(reasons);
  } else {
    reading.throttle_text = "not reported";
  }
  return reading;
}

std::optional<NvmlSystem> NvmlSystem::describe(std::string& reason, const std::string& library) {
  using Library = NvmlSensor::Library;
  reason.clear();
  const std::unique_ptr<Library> nvml = Library::open(library, reason);
  if (nvml == nullptr) return std::nullopt;
  NvmlSystem system;
  system.driver_version = Library::ask_text(nvml->driver_version);
  system.cuda_version = Library::ask<int>(nvml->cuda_version);
  const auto count = Library::ask<unsigned>(nvml->device_count);
  for (unsigned index = 0; index < count; ++index) {
    const auto device = Library::ask<Handle>(nvml->handle_by_index, index);
    if (device == nullptr) continue;
    NvmlGpu gpu;
    gpu.name = Library::ask_text(nvml->name, device);
    gpu.uuid = Library::ask_text(nvml->uuid, device);
    gpu.pci_bus_id = Library::ask<PciInfo>(nvml->pci_info, device).bus_id.data();
    gpu.memory_bytes = Library::ask<Memory>(nvml->memory, device).total;
    if (nvml->compute_capability != nullptr &&
        nvml->compute_capability(device, &gpu.major, &gpu.minor) != kSuccess) {
      gpu.major = gpu.minor = 0;
    }
    system.gpus.push_back(std::move(gpu));
  }
  return system;
}

}  // namespace moe::cuda
