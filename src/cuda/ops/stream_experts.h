// The experts of a layer for a few tokens: every active expert's weights are read once, row-major as
// they were given, straight into the registers of the tensor cores' small products.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "cuda/ops/stream_router.h"
#include "moe/config.h"

namespace moe::cuda {

/// Warps of a block. Some share features and divide the reduction, the others have features of their
/// own.
inline constexpr int kStreamWarps = 8;

/// How the work is cut.
struct StreamConfig {
  /// Tiles of eight tokens that a warp multiplies a weight with before it asks for the next, 1 or 2. An
  /// expert with more tokens has its weights read again; one with a tile runs the loop of one tile.
  int token_tiles = 1;
  int gate_up_features = 8;    ///< of a group of gate and up: 8, without a gate 16
  int gate_up_row_groups = 1;  ///< 1, 2, 4, 8: groups of features of a block
  int down_row_groups = 1;     ///< of sixteen
  bool operator==(const StreamConfig&) const = default;
};
/// By the rows that an expert is expected to have and the blocks that a device wants. A host function
/// of sizes alone.
[[nodiscard]] StreamConfig choose_stream_config(const Problem& problem, int multiprocessors);
/// "16 tokens at once; gate|up in blocks of 64 features; ..."
[[nodiscard]] std::string to_string(const StreamConfig& config);

/// bf16 throughout. Views: the memory is the caller's. S = K + StreamBlock::parts slots of a token.
struct StreamExperts {
  const void* gate = nullptr;  ///< [E,I,H]; null without a gate
  const void* up = nullptr;    ///< [E,I,H]
  const void* down = nullptr;  ///< [E,H,I]
  std::int64_t tokens = 0;     ///< 1 to kMostStreamTokens
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
  std::int64_t experts = 0;
  std::int64_t top_k = 0;
  StreamRouting routing = {};   ///< of these tokens, by stream_router() just before on the stream
  void* act = nullptr;          ///< [T·S, act_stride] by slot
  std::int64_t act_stride = 0;  ///< elements; T·S·act_stride < 2^32
  StreamBlock block = {};       ///< that of the router, too
};

/// act[slot,:] = silu(gate_e · x_t) · (up_e · x_t), or what the block has instead, for every slot t·S + s
/// that is used. Weights are read around the caches where H and addresses are multiples of 16 bytes,
/// element by element elsewhere.
void stream_gate_up(const StreamExperts& experts, const void* x, const StreamConfig& config,
                    cudaStream_t stream);
/// rows[slot,:] = down_e · act[slot,:] and its bias, [T·S,H]. Follows stream_gate_up() directly: it
/// starts to read `down` before that is complete.
void stream_down(const StreamExperts& experts, void* rows, const StreamConfig& config,
                 cudaStream_t stream);

}  // namespace moe::cuda
