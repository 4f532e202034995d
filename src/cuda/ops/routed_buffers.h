// The memory of levels that permute rows by expert, and their packed weights.
//
// K', E' and P are of with_shared_slots(): the P parts of a shared expert are experts E.. which every token
// takes. M matrices come before the activation: gate and up, or up alone.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "core/expert_set.h"
#include "cuda/backend.h"
#include "cuda/ops/permute.h"
#include "moe/layer.h"

namespace moe::cuda {

/// Views of the arena.
struct RoutedBuffers {
  float* logits = nullptr;           // [T,E]; none with given routes
  float* shared_weights = nullptr;   // [T] of Problem::shared_switch
  std::int32_t* topk_idx = nullptr;  // [T,K']
  float* topk_weights = nullptr;     // [T,K']
  Permutation permutation;
  std::byte* rows = nullptr;  // [T·K',H] x by expert; y by expert once the gate|up GEMMs are done
  std::byte* gate_up = nullptr;  // [T·K',M·I]; the activation leaves act in the first I columns
};

/// M.
[[nodiscard]] inline std::int64_t matrices_before_activation(const Problem& problem) {
  return problem.activation.gated() ? 2 : 1;
}

/// Columns of stored rows, where a level pads them.
struct StoredWidths {
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
  static StoredWidths of(const Problem& problem) {
    return {problem.shape.hidden, problem.shape.intermediate};
  }
};

/// The layout, on Arena for the blocks and on ArenaPlan for their size. `scratch`: elements of
/// permutation.block_counts, where a level needs more than build_permutation() does.
template <class Memory>
RoutedBuffers carve_routed_buffers(Memory& memory, const Problem& problem, const DeviceFacts& facts,
                                   const StoredWidths& widths, std::int64_t scratch = 0) {
  const Shape shape = with_shared_slots(problem);
  const std::int64_t routed = shape.routed_rows();
  const bool given = problem.router.scoring == Scoring::kGiven;
  const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
  RoutedBuffers b;
  b.logits = memory.template take<float>(given ? 0 : shape.tokens * problem.shape.experts);
  b.shared_weights = memory.template take<float>(problem.shared_switch ? shape.tokens : 0);
  b.topk_idx = memory.template take<std::int32_t>(routed);
  b.topk_weights = memory.template take<float>(routed);
  b.permutation.expert_offsets = memory.template take<std::int32_t>(shape.experts + 1);
  b.permutation.dst_row = memory.template take<std::int32_t>(routed);
  b.permutation.block_counts = memory.template take<std::int32_t>(
      std::max(scratch, permutation_scratch(routed, shape.experts, facts)));
  b.rows = memory.template take<std::byte>(routed * widths.hidden * element);
  b.gate_up = memory.template take<std::byte>(routed * matrices_before_activation(problem) *
                                              widths.intermediate * element);
  return b;
}

/// Bytes of gate and up of all E' experts, with rows of `widths`.
[[nodiscard]] std::uint64_t gate_up_bytes(const Problem& problem, const StoredWidths& widths);
[[nodiscard]] std::uint64_t gate_up_bytes(const Problem& problem);
/// [E', M·I, H]: gate rows, then up rows of each expert, so that one GEMM makes both; zeros where
/// `widths` are wider and where the last part of a shared expert is narrower. Queued on `stream`.
[[nodiscard]] DeviceBuffer pack_gate_up(const Problem& problem, const Weights& weights,
                                        const StoredWidths& widths, cudaStream_t stream);
[[nodiscard]] DeviceBuffer pack_gate_up(const Problem& problem, const Weights& weights,
                                        cudaStream_t stream);

/// The same of the P parts alone.
[[nodiscard]] std::uint64_t shared_gate_up_bytes(const Problem& problem);
[[nodiscard]] DeviceBuffer pack_shared_gate_up(const Problem& problem, const Weights& weights,
                                               cudaStream_t stream);

/// Bytes of down of the P parts, and of them with the E experts' before them.
[[nodiscard]] std::uint64_t shared_down_bytes(const Problem& problem, const StoredWidths& widths);
[[nodiscard]] std::uint64_t down_bytes(const Problem& problem, const StoredWidths& widths);
/// [P,H,I], or [E',H,I]; zeros as above; an empty buffer of none. Queued on `stream`.
[[nodiscard]] DeviceBuffer pack_shared_down(const Problem& problem, const Weights& weights,
                                            const StoredWidths& widths, cudaStream_t stream);
[[nodiscard]] DeviceBuffer pack_down(const Problem& problem, const Weights& weights,
                                     const StoredWidths& widths, cudaStream_t stream);

}  // namespace moe::cuda
