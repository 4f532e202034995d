// Everything from x to the rows by expert and their tiles in one kernel (sm_90a): router product, choice
// of experts, stable counting sort, list of row tiles. Logits never leave shared memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "cuda/backend.h"
#include "cuda/device/router_rule.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/route_front_plan.h"
#include "cuda/ops/row_tiles.h"
#include "moe/config.h"

namespace moe::cuda {

struct FrontCall {
  const void* x = nullptr;           ///< [tokens,H] bf16
  std::int64_t tokens = 0;           ///< >= 1
  std::int32_t* topk_idx = nullptr;  ///< [tokens,K]
  float* topk_weights = nullptr;     ///< [tokens,K]
  Permutation permutation;           ///< block_counts: RouteFront::scratch() elements
  RowTiles row_tiles = {};           ///< tiles null: none are listed; else as build_row_tiles()
  int largest_tile = 0;              ///< rows, a multiple of 16
};

/// The front of a layer whose x and router are bf16. The order of fp32 additions is that of the kernel,
/// so that logits may differ in the last bits from a library's; choices and weights of given logits are
/// those of route_rows(), bit for bit, and so are permutation and tiles. The same x gives the same bits.
class RouteFront {
 public:
  /// router: [E,H] bf16, read by every run().
  RouteFront(const Shape& shape, const RouterRule& rule, const void* router,
             const DeviceFacts& facts);
  RouteFront(RouteFront&&) noexcept;
  RouteFront& operator=(RouteFront&&) noexcept;
  ~RouteFront();

  /// Whether run() takes `tokens` rows at x: addresses are multiples of 16, H of 8, E is at most
  /// kMostFrontExperts, and every token fits into the blocks that are resident at once.
  [[nodiscard]] bool takes(const void* x, std::int64_t tokens) const;
  [[nodiscard]] FrontPlan plan(std::int64_t tokens) const;
  /// Elements of Permutation::block_counts.
  [[nodiscard]] static std::int64_t scratch(const Shape& shape, const DeviceFacts& facts);
  /// Only what takes() says. No host synchronisation, no state between calls on the device.
  void run(const FrontCall& call, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moe::cuda
