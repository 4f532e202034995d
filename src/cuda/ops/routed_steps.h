// The steps around the products of levels that permute rows by expert, for every block: which kernel a
// step needs is decided here. Everything is queued on the stream that is given.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/ops/routed_buffers.h"
#include "moe/layer.h"

namespace moe::cuda {

/// Whether a slot may be without a row.
[[nodiscard]] inline Slots slots_of(const Problem& problem) {
  return problem.router.scoring == Scoring::kGiven ? Slots::kSome : Slots::kAll;
}

class RoutedSteps {
 public:
  RoutedSteps() = default;
  /// `weights` outlive it. `down_bias` [E,widths.hidden] in place of theirs, where rows are padded.
  RoutedSteps(const Problem& problem, const Weights& weights, const StoredWidths& widths,
              const float* down_bias = nullptr);
  RoutedSteps(const Problem& problem, const Weights& weights)
      : RoutedSteps(problem, weights, StoredWidths::of(problem)) {}

  /// b.rows from x[tokens, widths.hidden] and b.permutation.
  void permute(const void* x, std::int64_t tokens, const RoutedBuffers& b,
               cudaStream_t stream) const;
  /// In place in rows first.. of b.gate_up: act over their first columns.
  void activate(const RoutedBuffers& b, std::int64_t first, std::int64_t rows,
                cudaStream_t stream) const;
  /// y[tokens, widths.hidden] from b.rows.
  void combine(const RoutedBuffers& b, std::int64_t tokens, void* y, cudaStream_t stream) const;

  /// Whether activate() is swiglu_rows(), and combine() has no extras.
  [[nodiscard]] bool plain_activation() const;
  [[nodiscard]] bool plain_combine() const;
  /// Elements between rows of b.gate_up.
  [[nodiscard]] std::int64_t gate_up_stride() const {
    return matrices_before_activation(problem_) * widths_.intermediate;
  }

 private:
  Problem problem_;
  Weights weights_;
  StoredWidths widths_;
  std::int64_t slots_ = 0;  // K'
  const float* down_bias_ = nullptr;
};

}  // namespace moe::cuda
