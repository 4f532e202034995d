// Device: where a layer's memory lives and its work runs. One implementation per backend; Layer and
// what measures it know only this interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "moe/layer.h"

namespace moe {

/// What measurements made on a device are valid for.
struct DeviceIdentity {
  std::string device;   ///< which kind of it
  std::string version;  ///< of its driver, and of the kernels of this build
};

class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  /// "" when work can run here; else the reason as a sentence. Nothing else may be called then.
  [[nodiscard]] virtual std::string unavailable() const = 0;
  [[nodiscard]] virtual DeviceIdentity identity() const = 0;
  /// Bytes that can still be allocated where this device computes.
  [[nodiscard]] virtual std::uint64_t available_memory() const = 0;
  /// Throws kInvalidArgument unless the device can read and write the tensor's memory.
  virtual void check_reachable(const char* name, const TensorView& tensor) const = 0;

  /// The layer's arena: at least `bytes` bytes, freed with the device. Called once. Throws
  /// kOutOfMemory.
  [[nodiscard]] virtual void* allocate_workspace(std::size_t bytes) = 0;
  /// Layer::release_workspace_pages().
  virtual void release_workspace_pages() = 0;

  /// Memory of the device outside of the workspace, freed with its last owner. Throws kOutOfMemory.
  [[nodiscard]] virtual std::shared_ptr<void> allocate(std::size_t bytes) = 0;
  /// Whether that is the host's memory, so that host tensors can be used where they are.
  [[nodiscard]] virtual bool on_host() const = 0;
  /// What LayerOptions::stream takes to order a layer's work with this device's; null on the host.
  [[nodiscard]] virtual void* native_stream() const = 0;

  /// Waits until all work queued so far is done.
  virtual void synchronise() = 0;
  /// Copies and waits. The other side is host memory.
  virtual void copy_from_host(void* to, const void* from, std::size_t bytes) = 0;
  virtual void copy_to_host(void* to, const void* from, std::size_t bytes) = 0;
};

/// Of options.backend, if this build has it; else the CPU's.
[[nodiscard]] std::unique_ptr<Device> make_device(const LayerOptions& options);

namespace cpu {
[[nodiscard]] std::unique_ptr<Device> make_device(const LayerOptions& options);
}
namespace cuda {
/// Never throws for a machine without a GPU: unavailable() has the reason then.
[[nodiscard]] std::unique_ptr<Device> make_device(const LayerOptions& options);
}  // namespace cuda

}  // namespace moe
