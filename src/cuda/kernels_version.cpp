// Names the kernels of this build: MOE_KERNELS is a hash of their sources (CMakeLists.txt).
#include <fmt/format.h>

#include "cuda/backend.h"

namespace moe::cuda {

DeviceIdentity identity_of(const DeviceFacts& facts) {
  return {.device = fmt::format("{}, compute capability {}.{}, {} multiprocessors", facts.name,
                                facts.major, facts.minor, facts.multiprocessors),
          .version = fmt::format("driver {}, kernels {}", facts.driver_version, MOE_KERNELS)};
}

}  // namespace moe::cuda
