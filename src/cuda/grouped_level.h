// What levels and variants share that permute rows by expert and leave the experts to GEMMs of the
// library: they differ in where the kernels around the GEMMs come from and in how the GEMMs are
// spread over streams.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "cuda/level_base.h"
#include "cuda/ops/expert_gemms.h"
#include "cuda/ops/layer_kernels.h"
#include "cuda/ops/routed_buffers.h"

namespace moe::cuda {

class GroupedLevel : public CudaLevel {
 public:
  [[nodiscard]] MemoryNeeds memory(const Problem& problem,
                                   const ExecutionOptions& execution) const override;
  /// Waits in the middle until the host knows how many rows each expert has.
  void forward(Context& context, const TensorView& x, const TensorView& y) override;

 protected:
  /// The part of prepare() that they share, after keep(): packs gate and up, and makes the GEMMs for
  /// schedules of at most `streams` and `launchers`.
  void keep_experts(std::unique_ptr<LayerKernels> kernels, int streams, int launchers = 1);
  /// How a forward of `tokens` runs its experts. Asked in forward.
  [[nodiscard]] virtual ExpertSchedule schedule(std::int64_t tokens) const = 0;

  std::unique_ptr<LayerKernels> kernels_;
  std::optional<ExpertGemms> gemms_;

 private:
  template <class Memory>
  static RoutedBuffers carve(Memory& memory, const Problem& problem, const DeviceFacts& facts) {
    return carve_routed_buffers(memory, problem, facts, StoredWidths::of(problem),
                                layer_kernels_scratch(problem, facts));
  }
  DeviceBuffer packed_;       // [E',M·I,H]
  DeviceBuffer shared_down_;  // [P,H,I]
};

}  // namespace moe::cuda
