// The layer for one token: nothing but weights that are read once, straight into registers, with every
// warp on rows of its own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "cuda/device/stream_block.h"
#include "moe/config.h"

namespace moe::cuda {

/// Most slots of the token, shared experts included; more go the way of several tokens.
inline constexpr std::int64_t kMostTokenSlots = 64;

/// Whether a forward of `tokens` tokens goes the way of one.
[[nodiscard]] bool is_one_token(const Problem& problem, std::int64_t tokens);

/// How the work is cut.
struct TokenConfig {
  int gate_up_blocks = 1;  ///< of the grid; blocks take features in turn
  int down_blocks = 1;     ///< likewise
  /// Into which a row of down is cut, so that no warp of a block is idle; 0: into units of 256 elements
  /// through all slots, where the layer is not plain.
  int parts = 0;
  int rows = 1;  ///< of down that a warp has in its registers at once: 1, 2, 4
  bool operator==(const TokenConfig&) const = default;
};
/// A host function of the problem alone, for which is_one_token() holds.
[[nodiscard]] TokenConfig choose_token_config(const Problem& problem, int multiprocessors);
/// "one token; gate|up by 264 blocks; down by 396, ..."
[[nodiscard]] std::string to_string(const TokenConfig& config);

/// bf16 throughout. Views: the memory is the caller's. S = K + StreamBlock::parts slots.
struct TokenLayer {
  const void* router = nullptr;  ///< [E,H]; null of given routes
  const void* gate = nullptr;    ///< [E,I,H]; null without a gate
  const void* up = nullptr;      ///< [E,I,H]
  const void* down = nullptr;    ///< [E,H,I]
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
  std::int64_t experts = 0;
  std::int64_t top_k = 0;
  float* logits = nullptr;           ///< [E], 16-byte aligned
  float* switch_logit = nullptr;     ///< of StreamBlock::shared_switch
  std::uint64_t* choices = nullptr;  ///< [S] from the first product to the second
  void* act = nullptr;               ///< [S, act_stride] by slot
  std::int64_t act_stride = 0;       ///< elements
  StreamBlock block = {};
};

// The three follow each other directly on a stream: the last starts to read weights before the one
// before it is complete. Weights are read around L1 where rows and addresses
// are multiples of 16 bytes, element by element elsewhere. Sums have one order, given by the sizes.

/// logits[e] = router_e · x, in fp32, and the shared expert's switch; nothing of given routes.
void token_router(const TokenLayer& layer, const void* x, cudaStream_t stream);
/// act[s,:] = silu(gate_e · x) · (up_e · x), or what the block has instead, of the s-th expert e that the
/// logits choose.
void token_gate_up(const TokenLayer& layer, const void* x, const TokenConfig& config,
                   cudaStream_t stream);
/// y = sum over s, in order, of weight s · (down_e · act[s,:] and its bias).
void token_down(const TokenLayer& layer, void* y, const TokenConfig& config, cudaStream_t stream);

}  // namespace moe::cuda
