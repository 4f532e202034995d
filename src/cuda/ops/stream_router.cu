#include "cuda/ops/stream_router.h"

#include "core/check.h"
#include "cuda/ops/router.h"
#include "cuda/ops/stream_router_parts.cuh"

namespace moe::cuda {

void stream_router(const void* x, const void* router, std::int64_t tokens, std::int64_t hidden,
                   std::int64_t experts, std::int64_t top_k, const StreamRouting& out,
                   cudaStream_t stream, const StreamBlock& block) {
  static_assert(kMostStreamTokens * kMaxExperts < 1 << 20, "rows in list_experts()'s scan");
  static_assert(kStreamArrivals > kMostStreamTokens / kStreamTokens, "a counter a tile of tokens");
  MOE_INTERNAL_CHECK(
      tokens >= 1 && tokens <= kMostStreamTokens && experts + block.parts <= kMaxExperts,
      "tokens={} (1 to {}), experts={} and {} shared (at most {})", tokens, kMostStreamTokens,
      experts, block.parts, kMaxExperts);
  StreamRouterCall call{.x = x,
                        .router = router,
                        .sizes = {.tokens = static_cast<int>(tokens),
                                  .hidden = static_cast<int>(hidden),
                                  .experts = static_cast<int>(experts),
                                  .top_k = static_cast<int>(top_k),
                                  .token_tiles = 0,
                                  .expert_tiles = 0},
                        .out = out,
                        .block = block,
                        .aligned = false,
                        .stream = stream};
  // Null is a multiple of 16, too.
  call.aligned = in_widest_vectors(hidden * 2, {x, router, block.shared_switch});
  if (block.given) {
    stream_router_of_given(call);
  } else if (!block.plain_rule) {
    stream_router_by_rule(call);
  } else {
    with_stream_registers_for(
        experts, [&]<int kPerLane>() { launch_router<StreamRule::kPlain, kPerLane>(call); });
  }
}

}  // namespace moe::cuda
