#include "cuda/ops/route_front_sm90.h"

#include <algorithm>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/ops/route_front_kernel.cuh"
#include "cuda/tensor_map.h"

namespace moe::cuda {
namespace {

constexpr std::int64_t kBlockDepth = 64;

/// body.operator()<kPerLane>() for the logits that a lane keeps.
template <class Body>
void with_front_registers(std::int64_t experts, Body&& body) {
  if (experts <= 32) {
    body.template operator()<1>();
  } else if (experts <= 64) {
    body.template operator()<2>();
  } else if (experts <= 128) {
    body.template operator()<4>();
  } else {
    body.template operator()<8>();
  }
}

using Kernel = void (*)(FrontMaps, FrontArguments);

/// One launch: clusters of `splits` blocks, all of them resident, which may become so while the kernel
/// before drains (cuda/launch.h).
struct Launch {
  cudaLaunchAttribute attributes[3]{};
  cudaLaunchConfig_t config{};

  Launch(int blocks, int splits, std::size_t shared, cudaStream_t stream) {
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(FrontConfig<1>::kThreads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attributes;
    const auto add = [&](cudaLaunchAttributeID id, const cudaLaunchAttributeValue& value) {
      attributes[config.numAttrs].id = id;
      attributes[config.numAttrs++].val = value;
    };
    cudaLaunchAttributeValue value{};
    value.programmaticStreamSerializationAllowed = 1;
    add(cudaLaunchAttributeProgrammaticStreamSerialization, value);
    if (blocks > 1) {
      value.cooperative = 1;
      add(cudaLaunchAttributeCooperative, value);
    }
    // NOTE: clusters of one are no clusters: with the attribute not every multiprocessor gets one.
    if (splits > 1) {
      value.clusterDim = {static_cast<unsigned>(splits), 1, 1};
      add(cudaLaunchAttributeClusterDimension, value);
    }
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
};

}  // namespace

struct RouteFront::State {
  Shape shape;
  RouterRule rule;
  Kernel kernel = nullptr;
  std::size_t shared_bytes = 0;
  int weight_rows = 0;  // of a box
  bool aligned = false;
  FrontMachine machine;
  FrontMaps maps{};
  // What the maps describe, and the plan, of the last run.
  const void* x = nullptr;
  std::int64_t tokens = 0;
  FrontPlan plan;
};

RouteFront::RouteFront(const Shape& shape, const RouterRule& rule, const void* router,
                       const DeviceFacts& facts)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.shape = shape;
  s.rule = rule;
  s.aligned = reinterpret_cast<std::uintptr_t>(router) % 16 == 0 && shape.hidden % 8 == 0 &&
              shape.experts <= kMostFrontExperts &&
              (rule.plain() || shape.top_k <= kMostRuleChoices);
  if (!s.aligned) return;
  with_front_registers(shape.experts, [&]<int kPerLane>() {
    using Config = FrontConfig<kPerLane>;
    s.kernel =
        rule.plain() ? route_front_kernel<kPerLane, true> : route_front_kernel<kPerLane, false>;
    s.shared_bytes = Config::kSharedBytes;
    s.weight_rows = Config::kExpertBlocks * 64;
  });
  MOE_CUDA_CHECK(cudaFuncSetAttribute(s.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(s.shared_bytes)));
  s.machine.clusters[0] = facts.multiprocessors;  // kSharedBytes: one block each
  for (std::size_t i = 1; i < s.machine.clusters.size(); ++i) {
    const int splits = FrontMachine::kSplits[i];
    const Launch launch(splits, splits, s.shared_bytes, nullptr);
    MOE_CUDA_CHECK(
        cudaOccupancyMaxActiveClusters(&s.machine.clusters[i], s.kernel, &launch.config));
  }
  s.maps.router = make_tensor_map({.data = router,
                                   .rows = shape.experts,
                                   .columns = shape.hidden,
                                   .box_rows = s.weight_rows,
                                   .box_columns = static_cast<int>(kBlockDepth)});
}
RouteFront::RouteFront(RouteFront&&) noexcept = default;
RouteFront& RouteFront::operator=(RouteFront&&) noexcept = default;
RouteFront::~RouteFront() = default;

std::int64_t RouteFront::scratch(const Shape& shape, const DeviceFacts& facts) {
  const std::int64_t most_blocks =
      std::min<std::int64_t>((shape.tokens + 31) / 32 * 8, facts.multiprocessors);
  std::int64_t counts = 0;  // of a block, 16 bits each
  with_front_registers(shape.experts,
                       [&]<int kPerLane>() { counts = FrontConfig<kPerLane>::kMostExperts; });
  return most_blocks * counts / 2;
}

FrontPlan RouteFront::plan(std::int64_t tokens) const {
  if (!state_->aligned) return {};
  return plan_front(tokens, state_->shape.hidden, state_->shape.experts, state_->machine);
}

bool RouteFront::takes(const void* x, std::int64_t tokens) const {
  if (x == state_->x && tokens == state_->tokens) return true;
  return reinterpret_cast<std::uintptr_t>(x) % 16 == 0 && plan(tokens).clusters > 0;
}

void RouteFront::run(const FrontCall& call, cudaStream_t stream) {
  State& s = *state_;
  if (call.x != s.x || call.tokens != s.tokens) {
    MOE_INTERNAL_CHECK(takes(call.x, call.tokens), "{} tokens at {}: not for this kernel",
                       call.tokens, call.x);
    s.plan = plan(call.tokens);
    s.maps.x = make_tensor_map({.data = call.x,
                                .rows = call.tokens,
                                .columns = s.shape.hidden,
                                .box_rows = s.plan.tile_tokens,
                                .box_columns = static_cast<int>(kBlockDepth)});
    s.x = call.x;
    s.tokens = call.tokens;
  }
  FrontArguments p{.rule = s.rule,
                   .tokens = static_cast<int>(call.tokens),
                   .experts = static_cast<int>(s.shape.experts),
                   .top_k = static_cast<int>(s.shape.top_k),
                   .k_blocks = 0,
                   .tile_tokens = s.plan.tile_tokens,
                   .split_bits = s.plan.splits == 8 ? 3 : s.plan.splits / 2,
                   .stages = 0,
                   .topk_idx = call.topk_idx,
                   .topk_weights = call.topk_weights,
                   .block_counts = reinterpret_cast<std::uint16_t*>(call.permutation.block_counts),
                   .expert_offsets = call.permutation.expert_offsets,
                   .dst_row = call.permutation.dst_row,
                   .row_tiles = call.row_tiles,
                   .largest_tile = call.largest_tile};
  with_front_registers(s.shape.experts, [&]<int kPerLane>() {
    using Config = FrontConfig<kPerLane>;
    p.k_blocks = static_cast<int>((s.shape.hidden + Config::kDepth - 1) / Config::kDepth);
    p.stages = Config::stages(s.plan.tile_tokens, (p.k_blocks + s.plan.splits - 1) / s.plan.splits);
  });
  const Launch launch(s.plan.blocks(), s.plan.splits, s.shared_bytes, stream);
  MOE_CUDA_CHECK(cudaLaunchKernelEx(&launch.config, s.kernel, s.maps, p));
  MOE_CUDA_CHECK_LAUNCH("route_front_kernel");
}

}  // namespace moe::cuda
