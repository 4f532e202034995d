// What the blocks of real models add to permuting, activating and combining rows, as launchers and
// kernels pass it. Views: of all tokens in a launcher.
#pragma once

#include <cstdint>

namespace moe::cuda {

/// Which of a token's slots have a row. Where all do, nothing is compared.
enum class Slots : unsigned char { kAll, kSome };

/// Beside rows and weights of a combine: slots without a row, and a bias of each expert's rows.
struct CombineExtras {
  static constexpr bool kAny = true;
  const std::int32_t* topk_idx = nullptr;  // [T,K] -1: the slot has no row
  const float* row_bias = nullptr;         // [biased,H]; null: none
  int biased = 0;                          // experts that have one: those below this number
};
struct NoCombineExtras {
  static constexpr bool kAny = false;
};

/// Biases of gate and up, by the expert of a row.
struct ActivationBias {
  const float* gate = nullptr;                   // [biased,columns]; null without a gate
  const float* up = nullptr;                     // [biased,columns]
  const std::int32_t* expert_offsets = nullptr;  // [experts+1]
  int experts = 0;
  int biased = 0;            // experts that have one: those below this number
  std::int64_t columns = 0;  // I; rows may be stored wider
};

}  // namespace moe::cuda
