// What the driver's management library (NVML) says of a GPU: clocks, power, temperature, and what
// holds the clocks down. Opened at run time; a machine without it gets a reason, never an error.
// Needs neither CUDA's headers nor a GPU to build.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace moe::cuda {

/// The name under which a driver installs NVML.
inline constexpr const char* kNvmlLibrary = "libnvidia-ml.so.1";

/// One look at a GPU. What the driver does not tell is 0 (some virtual machines hide power).
struct NvmlReading {
  int sm_clock_mhz = 0;
  int memory_clock_mhz = 0;
  double power_w = 0;  ///< of the board; newer GPUs report the mean of the last second
  int temperature_c = 0;
  std::uint64_t throttle_reasons = 0;  ///< NVML's bits, idle among them
  /// throttle_text(throttle_reasons), or "not reported".
  std::string throttle_text;
};

/// What lowers the clocks, in words: "sw power cap, hw thermal slowdown". "" when nothing does; an
/// idle GPU's clocks are low too, but that is not throttling.
[[nodiscard]] std::string throttle_text(std::uint64_t reasons);

/// One GPU, watched through NVML.
class NvmlSensor {
 public:
  /// `pci_bus_id` as cudaDeviceGetPCIBusId writes it, "0000:3b:00.0". nullptr when there is nothing
  /// to read, and `reason` then says why, in one sentence. `library` is another file for tests.
  [[nodiscard]] static std::unique_ptr<NvmlSensor> open(const std::string& pci_bus_id,
                                                        std::string& reason,
                                                        const std::string& library = kNvmlLibrary);
  NvmlSensor(const NvmlSensor&) = delete;
  NvmlSensor& operator=(const NvmlSensor&) = delete;
  ~NvmlSensor();

  /// Never throws for what the driver refuses to tell.
  [[nodiscard]] NvmlReading read() const;
  [[nodiscard]] const std::string& uuid() const { return uuid_; }
  [[nodiscard]] const std::string& driver_version() const { return driver_version_; }
  /// The highest clock of the device; 0 when not told.
  [[nodiscard]] int max_sm_clock_mhz() const { return max_sm_clock_mhz_; }
  /// The power limit in force; 0 when not told.
  [[nodiscard]] double power_limit_w() const { return power_limit_w_; }

 private:
  struct Library;
  explicit NvmlSensor(std::unique_ptr<Library> library);

  std::unique_ptr<Library> library_;
  void* device_ = nullptr;
  std::string uuid_;
  std::string driver_version_;
  int max_sm_clock_mhz_ = 0;
  double power_limit_w_ = 0;

  friend struct NvmlSystem;
};

struct NvmlGpu {
  std::string name;
  std::string pci_bus_id;
  std::string uuid;
  std::uint64_t memory_bytes = 0;
  int major = 0;  ///< compute capability
  int minor = 0;
};

/// The driver and every GPU that it shows to this process's user.
struct NvmlSystem {
  std::string driver_version;
  int cuda_version =
      0;  ///< newest that the driver supports, 1000·major + 10·minor; 0 when not told
  std::vector<NvmlGpu> gpus;

  /// nullopt with a `reason`, as NvmlSensor::open.
  [[nodiscard]] static std::optional<NvmlSystem> describe(
      std::string& reason, const std::string& library = kNvmlLibrary);
};

}  // namespace moe::cuda
