// Where the matrices of E' experts are, for levels that look them up by the expert of a routed row: the
// routed experts' in the caller's tensors, and those of a shared expert's parts in copies of the same sizes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/ops/routed_buffers.h"
#include "moe/layer.h"

namespace moe::cuda {

/// One matrix of every expert: expert e has its at data + e·stride elements, from shared_first on at
/// shared_data + (e - shared_first)·shared_stride.
struct MatrixByExpert {
  const void* data = nullptr;
  std::int64_t stride = 0;
  const void* shared_data = nullptr;
  std::int64_t shared_stride = 0;
  std::int64_t shared_first = INT64_MAX;

  /// Of an expert that the host knows.
  [[nodiscard]] const std::byte* at(std::int64_t expert, DType dtype) const {
    const bool shared = expert >= shared_first;
    const std::int64_t elements =
        shared ? (expert - shared_first) * shared_stride : expert * stride;
    return static_cast<const std::byte*>(shared ? shared_data : data) +
           elements * static_cast<std::int64_t>(size_of(dtype));
  }
};

class ExpertMatrixSet {
 public:
  ExpertMatrixSet() = default;
  /// `weights` outlive it. Copies are queued on `stream`.
  ExpertMatrixSet(const Problem& problem, const Weights& weights, cudaStream_t stream);
  /// Device memory that one holds.
  [[nodiscard]] static std::uint64_t bytes(const Problem& problem) {
    return shared_gate_up_bytes(problem) + shared_down_bytes(problem, StoredWidths::of(problem));
  }

  MatrixByExpert gate;  ///< [I,H]; none without a gate
  MatrixByExpert up;    ///< [I,H]
  MatrixByExpert down;  ///< [H,I]

 private:
  DeviceBuffer shared_gate_up_;  // [P,M·I,H]
  DeviceBuffer shared_down_;     // [P,H,I]
};

}  // namespace moe::cuda
