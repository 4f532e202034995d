#include "cuda/dynamic_library.h"

#include <dlfcn.h>

namespace moe::cuda {

std::unique_ptr<DynamicLibrary> DynamicLibrary::open(const std::vector<std::string>& candidates,
                                                     std::string& reason) {
  reason.clear();
  for (const std::string& candidate : candidates) {
    // Never unmapped: profilers and drivers leave threads and hooks that point into themselves.
    constexpr int kFlags = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE;
    if (void* handle = dlopen(candidate.c_str(), kFlags); handle != nullptr) {
      reason.clear();
      return std::unique_ptr<DynamicLibrary>(new DynamicLibrary(handle, candidate));
    }
    // Not what dlerror says of the last path that was guessed, but of the name users know.
    if (const char* error = dlerror(); reason.empty() && error != nullptr) reason = error;
  }
  return nullptr;
}

DynamicLibrary::~DynamicLibrary() {
  dlclose(handle_);
}

void* DynamicLibrary::symbol(const char* name) const {
  return dlsym(handle_, name);
}

}  // namespace moe::cuda
