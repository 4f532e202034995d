// The tuner of level 6: times tile shapes, chunks, prefetch and task sizes on the packed weights,
// one range of rows per expert after the other, and keeps what beats the heuristic twice.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cpu/isa/gemm_tile.h"
#include "cpu/ops/grouped_gemm.h"
#include "cpu/ops/pack.h"
#include "cpu/ops/tune_cache.h"
#include "moe/config.h"

namespace moe::cpu {

struct TuneProblem {
  const GemmKernels* kernels = nullptr;
  const PackedMatrices* gate_up = nullptr;
  const PackedMatrices* down = nullptr;
  Shape shape;
  DType dtype = DType::kF32;
  ActivationStep step = {};
  int threads = 1;
  std::function<void(const std::string&)> progress =
      {};                                     ///< called before each range; may be empty
  const std::atomic<bool>* cancel = nullptr;  ///< where it is set, time is over; may be null
};

/// The candidates for rows first..last per expert, the heuristic's choice first, no two that execute
/// the same.
[[nodiscard]] std::vector<TileChoice> tune_candidates(const GemmKernels& kernels, DType dtype,
                                                      std::int64_t first, std::int64_t last,
                                                      const TileChoice& heuristic);

/// Ranges that forwards of the shape can meet, the likeliest under uniform routing first.
[[nodiscard]] std::vector<int> tune_order(const Shape& shape);

/// Tunes the ranges of `ranges` that are not tuned yet, in tune_order, for at most `seconds`.
/// Returns how many were added. Its scratch memory is below the level's workspace.
int tune(const TuneProblem& problem, double seconds, TunedRanges& ranges);

}  // namespace moe::cpu
