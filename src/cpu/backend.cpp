// The CPU as a Device: workspace from HostBuffer, work is done when forward returns.
#include "core/backend.h"

#include <cstring>

#include "core/memory.h"
#include "cpu/ops/tune_cache.h"

namespace moe::cpu {
namespace {

class CpuDevice final : public Device {
 public:
  [[nodiscard]] std::string unavailable() const override { return {}; }
  [[nodiscard]] DeviceIdentity identity() const override { return {machine_name(), {}}; }
  [[nodiscard]] std::uint64_t available_memory() const override { return moe::available_memory(); }
  void check_reachable(const char*, const TensorView&) const override {}

  [[nodiscard]] void* allocate_workspace(std::size_t bytes) override {
    workspace_ = HostBuffer(bytes);
    return workspace_.data();
  }
  void release_workspace_pages() override { workspace_.drop_pages(); }

  [[nodiscard]] std::shared_ptr<void> allocate(std::size_t bytes) override {
    const auto buffer = std::make_shared<HostBuffer>(bytes);
    return {buffer, buffer->data()};
  }
  [[nodiscard]] bool on_host() const override { return true; }
  [[nodiscard]] void* native_stream() const override { return nullptr; }

  void synchronise() override {}
  void copy_from_host(void* to, const void* from, std::size_t bytes) override {
    std::memcpy(to, from, bytes);
  }
  void copy_to_host(void* to, const void* from, std::size_t bytes) override {
    std::memcpy(to, from, bytes);
  }

 private:
  HostBuffer workspace_;
};

}  // namespace

std::unique_ptr<Device> make_device(const LayerOptions&) {
  return std::make_unique<CpuDevice>();
}

}  // namespace moe::cpu
