// A libcuda.so.1 of a driver for CUDA 12.4, as far as the runtime asks before it refuses it.
#include <cstring>

namespace {

constexpr int kSuccess = 0;
constexpr int kNotFound = 500;

}  // namespace

extern "C" {

int cuInit(unsigned) {
  return kSuccess;
}

int cuDriverGetVersion(int* version) {
  *version = 12040;
  return kSuccess;
}

int cuGetProcAddress_v2(const char* symbol, void** function, int, unsigned long long, int*) {
  *function = nullptr;
  if (std::strcmp(symbol, "cuInit") == 0) *function = reinterpret_cast<void*>(cuInit);
  if (std::strcmp(symbol, "cuDriverGetVersion") == 0) {
    *function = reinterpret_cast<void*>(cuDriverGetVersion);
  }
  if (std::strncmp(symbol, "cuGetProcAddress", 16) == 0) {
    *function = reinterpret_cast<void*>(cuGetProcAddress_v2);
  }
  return *function == nullptr ? kNotFound : kSuccess;
}

}  // extern "C"
