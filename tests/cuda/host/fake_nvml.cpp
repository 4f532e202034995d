// A stand-in for the driver's libnvidia-ml.so.1, with one GPU. Environment variables switch it:
//   FAKE_NVML_INIT=9             what nvmlInit_v2 returns
//   FAKE_NVML_HIDES=1            power, temperature and throttle reasons are not supported
//   FAKE_NVML_REASONS=0x24       throttle reasons
// Compiled with FAKE_NVML_OLD_DRIVER, it has the throttle reasons under their former name only.
#include <cstdlib>
#include <cstring>

namespace {
constexpr int kNotSupported = 3;
constexpr int kNotFound = 6;
int device;
int open_count = 0;

bool is_device(const void* handle) {
  return handle == &device;
}
bool hides() {
  return std::getenv("FAKE_NVML_HIDES") != nullptr;
}
int give(char* text, unsigned length, const char* value) {
  if (std::strlen(value) >= length) return 7;  // insufficient size
  std::strcpy(text, value);
  return 0;
}
}  // namespace

extern "C" {

int fake_nvml_open_count() {
  return open_count;
}

int nvmlInit_v2() {
  const char* status = std::getenv("FAKE_NVML_INIT");
  if (status != nullptr) return std::atoi(status);
  ++open_count;
  return 0;
}
int nvmlShutdown() {
  --open_count;
  return 0;
}
const char* nvmlErrorString(int status) {
  return status == 9 ? "Driver Not Loaded" : status == kNotFound ? "Not Found" : "Other";
}
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = 1;
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
  if (index != 0) return kNotFound;
  *handle = &device;
  return 0;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, void** handle) {
  if (std::strcmp(bus_id, "0000:3b:00.0") != 0) return kNotFound;
  *handle = &device;
  return 0;
}
int nvmlDeviceGetClockInfo(void* handle, int type, unsigned* mhz) {
  if (!is_device(handle)) return kNotFound;
  *mhz = type == 1 ? 1755 : type == 2 ? 3201 : 0;
  return 0;
}
int nvmlDeviceGetMaxClockInfo(void* handle, int type, unsigned* mhz) {
  if (!is_device(handle)) return kNotFound;
  *mhz = type == 1 ? 1980 : 3201;
  return 0;
}
int nvmlDeviceGetPowerUsage(void* handle, unsigned* milliwatts) {
  if (!is_device(handle) || hides()) return kNotSupported;
  *milliwatts = 612345;
  return 0;
}
int nvmlDeviceGetEnforcedPowerLimit(void* handle, unsigned* milliwatts) {
  if (!is_device(handle)) return kNotFound;
  *milliwatts = 700000;
  return 0;
}
int nvmlDeviceGetTemperature(void* handle, int sensor, unsigned* celsius) {
  if (!is_device(handle) || sensor != 0 || hides()) return kNotSupported;
  *celsius = 63;
  return 0;
}
#ifdef FAKE_NVML_OLD_DRIVER
int nvmlDeviceGetCurrentClocksThrottleReasons(void* handle, unsigned long long* reasons) {
#else
int nvmlDeviceGetCurrentClocksEventReasons(void* handle, unsigned long long* reasons) {
#endif
  if (!is_device(handle) || hides()) return kNotSupported;
  const char* value = std::getenv("FAKE_NVML_REASONS");
  *reasons = value == nullptr ? 0x1 : std::strtoull(value, nullptr, 16);
  return 0;
}
int nvmlDeviceGetUUID(void* handle, char* text, unsigned length) {
  return is_device(handle) ? give(text, length, "GPU-01234567-89ab-cdef-0123-456789abcdef")
                           : kNotFound;
}
int nvmlDeviceGetName(void* handle, char* text, unsigned length) {
  return is_device(handle) ? give(text, length, "NVIDIA Imaginary") : kNotFound;
}
int nvmlDeviceGetPciInfo_v3(void* handle, char* info) {
  if (!is_device(handle)) return kNotFound;
  std::memset(info, 0x55,
              68);  // the whole structure: fields before the bus id must not be read as it
  std::strcpy(info + 36, "00000000:3B:00.0");
  return 0;
}
int nvmlDeviceGetMemoryInfo(void* handle, unsigned long long* total_free_used) {
  if (!is_device(handle)) return kNotFound;
  total_free_used[0] = 150754820096ULL;
  total_free_used[1] = 1;
  total_free_used[2] = 2;
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void* handle, int* major, int* minor) {
  if (!is_device(handle)) return kNotFound;
  *major = 9;
  *minor = 0;
  return 0;
}
int nvmlSystemGetDriverVersion(char* text, unsigned length) {
  return give(text, length, "580.159.03");
}
int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = 13000;
  return 0;
}

}  // extern "C"
