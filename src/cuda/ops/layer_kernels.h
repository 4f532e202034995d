// The steps around the experts' GEMMs, in two forms: precompiled for every shape, as level 4 has
// them, and compiled by NVRTC for one layer.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "cuda/backend.h"
#include "cuda/ops/routed_buffers.h"
#include "cuda/ops/routing.h"
#include "moe/config.h"
#include "moe/tensor.h"

namespace moe::cuda {

/// Whether the host needs to know expert_offsets during forward.
enum class HostReads : std::uint8_t { kNothing, kOffsets };

/// Everything is queued on the stream that is given; buffers are those of one forward. A forward
/// calls the steps in the order of their declaration.
class LayerKernels {
 public:
  LayerKernels() = default;
  LayerKernels(const LayerKernels&) = delete;
  LayerKernels& operator=(const LayerKernels&) = delete;
  virtual ~LayerKernels() = default;

  /// topk_idx (in a form of its own), topk_weights and expert_offsets from what routing starts from.
  virtual void route(const RoutingInputs& in, const RoutedBuffers& b, std::int64_t tokens,
                     HostReads reads, cudaStream_t stream) = 0;
  /// rows and dst_row from x.
  virtual void permute(const TensorView& x, const RoutedBuffers& b, cudaStream_t stream) = 0;
  /// Waits until the host knows expert_offsets[E+1] of this forward. Needs HostReads::kOffsets.
  [[nodiscard]] virtual const std::int32_t* wait_for_offsets(cudaStream_t stream) = 0;
  /// In place in rows first.. of gate_up: act over their first columns.
  virtual void activate(const RoutedBuffers& b, std::int64_t first, std::int64_t rows,
                        cudaStream_t stream) = 0;
  /// y from rows, dst_row and topk_weights.
  virtual void combine(const RoutedBuffers& b, const TensorView& y, cudaStream_t stream) = 0;

  /// Where the kernels come from.
  [[nodiscard]] virtual std::string describe() const = 0;
};

/// Elements of RoutedBuffers::permutation.block_counts that either form needs.
[[nodiscard]] std::int64_t layer_kernels_scratch(const Problem& problem, const DeviceFacts& facts);

/// `weights` are asked for biases alone.
[[nodiscard]] std::unique_ptr<LayerKernels> make_precompiled_kernels(const Problem& problem,
                                                                     const DeviceFacts& facts,
                                                                     const Weights& weights = {});

/// Device memory that the specialised form keeps, its code aside.
inline constexpr std::uint64_t kSpecialisedBytes = 256;
/// Compiles, or takes the cubin from `cache_folder`. Needs nvrtc_unavailable() to be "". Steps that differ
/// from those of the default router and of SwiGLU without biases are the precompiled ones.
[[nodiscard]] std::unique_ptr<LayerKernels> make_specialised_kernels(
    const Problem& problem, const DeviceFacts& facts, const std::string& cache_folder,
    const Weights& weights = {});

}  // namespace moe::cuda
