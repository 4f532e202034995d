// The layer for one token: nothing but weights that are read once, straight into registers, with every
// warp on rows of its own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "moe/config.h"

namespace moe::cuda {

/// Most slots of the token; more go the way of several tokens.
inline constexpr std::int64_t kMostTokenSlots = 64;

/// How the work is cut.
struct TokenConfig {
  int gate_up_blocks = 1;  ///< of the grid; blocks take features in turn
  int down_blocks = 1;     ///< likewise
  int parts = 1;           ///< into which a row of down is cut, so that no warp of a block is idle
  int rows = 1;            ///< of down that a warp has in its registers at once: 1, 2, 4
  bool operator==(const TokenConfig&) const = default;
};
/// A host function of sizes alone. top_k <= kMostTokenSlots.
[[nodiscard]] TokenConfig choose_token_config(const Shape& shape, int multiprocessors);
/// "one token; gate|up by 264 blocks; down by 396, ..."
[[nodiscard]] std::string to_string(const TokenConfig& config);

/// bf16 throughout. Views: the memory is the caller's.
struct TokenLayer {
  const void* router = nullptr;  ///< [E,H]
  const void* gate = nullptr;    ///< [E,I,H]
  const void* up = nullptr;      ///< [E,I,H]
  const void* down = nullptr;    ///< [E,H,I]
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
  std::int64_t experts = 0;
  std::int64_t top_k = 0;       ///< at most kMostTokenSlots
  float* logits = nullptr;      ///< [E], 16-byte aligned
  void* act = nullptr;          ///< [K, act_stride] by slot
  std::int64_t act_stride = 0;  ///< elements
};

// The three follow each other directly on a stream: the last starts to read weights before the one
// before it is complete, from the logits of the first. Weights are read around L1 where rows and addresses
// are multiples of 16 bytes, element by element elsewhere. Sums have one order, given by the sizes.

/// logits[e] = router_e · x, in fp32.
void token_router(const TokenLayer& layer, const void* x, cudaStream_t stream);
/// act[k,:] = silu(gate_e · x) · (up_e · x) of the k-th chosen expert e.
void token_gate_up(const TokenLayer& layer, const void* x, const TokenConfig& config,
                   cudaStream_t stream);
/// y = sum over k, in order, of weight k · (down_e · act[k,:]).
void token_down(const TokenLayer& layer, void* y, const TokenConfig& config, cudaStream_t stream);

}  // namespace moe::cuda
