// The memory of levels that permute rows by expert, and their packed weights.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "cuda/backend.h"
#include "cuda/ops/permute.h"
#include "moe/layer.h"

namespace moe::cuda {

/// Views of the arena.
struct RoutedBuffers {
  float* logits = nullptr;           // [T,E]
  std::int32_t* topk_idx = nullptr;  // [T,K]
  float* topk_weights = nullptr;     // [T,K]
  Permutation permutation;
  std::byte* rows = nullptr;  // [T·K,H] x by expert; y by expert once the gate|up GEMMs are done
  std::byte* gate_up = nullptr;  // [T·K,2·I]; SwiGLU leaves act in the gate half
};

/// The layout, on Arena for the blocks and on ArenaPlan for their size. `scratch`: elements of
/// permutation.block_counts, where a level needs more than build_permutation() does.
template <class Memory>
RoutedBuffers carve_routed_buffers(Memory& memory, const Problem& problem, const DeviceFacts& facts,
                                   std::int64_t scratch = 0) {
  const Shape& shape = problem.shape;
  const std::int64_t routed = shape.routed_rows();
  const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
  RoutedBuffers b;
  b.logits = memory.template take<float>(shape.tokens * shape.experts);
  b.topk_idx = memory.template take<std::int32_t>(routed);
  b.topk_weights = memory.template take<float>(routed);
  b.permutation.expert_offsets = memory.template take<std::int32_t>(shape.experts + 1);
  b.permutation.dst_row = memory.template take<std::int32_t>(routed);
  b.permutation.block_counts = memory.template take<std::int32_t>(
      std::max(scratch, permutation_scratch(routed, shape.experts, facts)));
  b.rows = memory.template take<std::byte>(routed * shape.hidden * element);
  b.gate_up = memory.template take<std::byte>(routed * 2 * shape.intermediate * element);
  return b;
}

/// Bytes of gate and up of all experts.
[[nodiscard]] std::uint64_t gate_up_bytes(const Problem& problem);
/// [E, 2·I, H]: gate rows, then up rows of each expert, so that one GEMM makes both. Queued on
/// `stream`.
[[nodiscard]] DeviceBuffer pack_gate_up(const Problem& problem, const Weights& weights,
                                        cudaStream_t stream);

}  // namespace moe::cuda
