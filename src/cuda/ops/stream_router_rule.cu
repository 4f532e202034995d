// stream_router() for routers that are not plain, and for given routes.
#include "core/check.h"
#include "cuda/ops/router.h"
#include "cuda/ops/stream_router_parts.cuh"

namespace moe::cuda {

void stream_router_by_rule(const StreamRouterCall& call) {
  MOE_INTERNAL_CHECK(call.sizes.top_k <= kMostRuleChoices, "top_k={} exceeds {}", call.sizes.top_k,
                     kMostRuleChoices);
  with_stream_registers_for(call.sizes.experts, [&]<int kPerLane>() {
    launch_router<StreamRule::kRule, kPerLane>(call);
  });
}

void stream_router_of_given(const StreamRouterCall& call) {
  MOE_INTERNAL_CHECK(call.sizes.top_k <= kWarpSize, "top_k={} exceeds {}", call.sizes.top_k,
                     kWarpSize);
  launch_router<StreamRule::kGiven, 1>(call);
}

}  // namespace moe::cuda
