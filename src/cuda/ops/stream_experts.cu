#include "cuda/ops/stream_experts.h"

#include <algorithm>
#include <cmath>

#include "core/expert_set.h"
#include "cuda/ops/stream_experts_parts.cuh"

namespace moe::cuda {
namespace {

std::int64_t blocks_of(std::int64_t count, std::int64_t block) {
  return (count + block - 1) / block;
}

/// Features of gate and up that a warp has at once.
int gate_up_features(bool gated) {
  return gated ? 8 : 16;
}
constexpr int kDownFeatures = 16;

StreamProductCall common(const char* name, const StreamExperts& experts, const StreamConfig& config,
                         cudaStream_t stream) {
  StreamProductCall call{};
  call.name = name;
  call.token_tiles = config.token_tiles;
  call.stream = stream;
  StreamBlockWork& work = call.work;
  work.block = experts.block;
  work.active = experts.routing.active;
  work.slots = experts.routing.slots;
  if (experts.block.weight_on_input) work.input_weights = experts.routing.topk_weights;
  work.token_slots = static_cast<int>(experts.top_k) + experts.block.parts;
  work.experts = static_cast<int>(experts.experts);
  work.most_active =
      most_active(static_cast<int>(experts.tokens), static_cast<int>(experts.experts),
                  static_cast<int>(experts.top_k), experts.block.parts);
  return call;
}

}  // namespace

StreamConfig choose_stream_config(const Problem& problem, int multiprocessors) {
  constexpr double kBlocksWanted = 1.3;  // of a multiprocessor
  const Shape& shape = problem.shape;
  StreamConfig config;
  config.gate_up_features = gate_up_features(problem.activation.gated());
  const auto experts = static_cast<double>(shape.experts);
  const double share = static_cast<double>(shape.top_k) / experts;
  const auto tokens = static_cast<double>(shape.tokens);
  config.token_tiles = shape.tokens <= kStreamTokens ? 1 : 2;
  const double active = experts * (1 - std::pow(1 - share, tokens)) +
                        static_cast<double>(with_shared_slots(problem).experts - shape.experts);
  const auto row_groups = [&](std::int64_t features, int of_warp) {
    int groups = kStreamWarps;
    const auto blocks = [&] {
      return active * static_cast<double>(blocks_of(features, std::int64_t{groups} * of_warp));
    };
    while (groups > 1 && blocks() < kBlocksWanted * multiprocessors) groups /= 2;
    return groups;
  };
  config.gate_up_row_groups = row_groups(shape.intermediate, config.gate_up_features);
  config.down_row_groups = row_groups(shape.hidden, kDownFeatures);
  return config;
}

std::string to_string(const StreamConfig& config) {
  return fmt::format(
      "{} tokens at once; gate|up in blocks of {} features; down in blocks of {}, combined after",
      config.token_tiles * kStreamTokens, config.gate_up_features * config.gate_up_row_groups,
      kDownFeatures * config.down_row_groups);
}

void stream_gate_up(const StreamExperts& experts, const void* x, const StreamConfig& config,
                    cudaStream_t stream) {
  StreamProductCall call = common("stream_gate_up", experts, config, stream);
  StreamBlockWork& work = call.work;
  work.low = static_cast<const Bf16*>(experts.gate);
  work.high = static_cast<const Bf16*>(experts.up);
  work.from = static_cast<const Bf16*>(x);
  work.to = static_cast<Bf16*>(experts.act);
  work.features = static_cast<int>(experts.intermediate);
  work.depth = static_cast<int>(experts.hidden);
  work.from_stride = static_cast<int>(experts.hidden);
  work.to_stride = static_cast<int>(experts.act_stride);
  work.row_groups = config.gate_up_row_groups;
  const StreamBlock& block = experts.block;
  call.aligned = in_widest_vectors(
      experts.hidden * 2, {experts.gate, experts.up, x, block.shared_gate, block.shared_up});
  if (block.plain_experts()) {
    launch_product<GateUp>(call, config.gate_up_features);
  } else {
    stream_block_gate_up(call);
  }
}

void stream_down(const StreamExperts& experts, void* rows, const StreamConfig& config,
                 cudaStream_t stream) {
  StreamProductCall call = common("stream_down", experts, config, stream);
  StreamBlockWork& work = call.work;
  work.low = work.high = static_cast<const Bf16*>(experts.down);
  work.from = static_cast<const Bf16*>(experts.act);
  work.to = static_cast<Bf16*>(rows);
  work.features = static_cast<int>(experts.hidden);
  work.depth = static_cast<int>(experts.intermediate);
  work.from_stride = static_cast<int>(experts.act_stride);
  work.to_stride = static_cast<int>(experts.hidden);
  work.row_groups = config.down_row_groups;
  const StreamBlock& block = experts.block;
  call.aligned =
      in_widest_vectors(experts.intermediate * 2, {experts.down, experts.act, block.shared_down}) &&
      block.shared % 8 == 0 && experts.act_stride % 8 == 0;
  if (block.plain_experts()) {
    launch_product<Down>(call, kDownFeatures);
  } else {
    stream_block_down(call);
  }
}

}  // namespace moe::cuda
