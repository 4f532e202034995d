#include "cuda/ops/stream_token.h"

#include <algorithm>

#include "core/expert_set.h"
#include "cuda/device/stream_choose.cuh"
#include "cuda/device/swiglu.cuh"
#include "cuda/ops/stream_router.h"
#include "cuda/ops/stream_token_parts.cuh"

namespace moe::cuda {
namespace {

/// What the kernels know of a call.
struct Work {
  const Bf16* router;
  const Bf16* gate;
  const Bf16* up;
  const Bf16* down;
  const Bf16* x;
  float* logits;
  Bf16* act;
  Bf16* y;
  int hidden, intermediate, experts, top_k;
  int act_stride;
  int parts;
};

/// The token's experts and their weights, as each block finds them for itself.
struct Choices {
  ActiveExpert active[kMostTokenSlots];
  std::int32_t slots[kMostTokenSlots];
  std::int32_t topk_idx[kMostTokenSlots];
  float topk_weights[kMostTokenSlots];
  Candidates candidates;
};
template <int kPerLane>
__device__ __forceinline__ void choose(const Work& work, Choices& choices) {
  if (threadIdx.x < kWarpSize) {
    choose_for_token<kPerLane>(
        work.logits, work.experts, work.top_k, choices.candidates,
        {choices.topk_idx, choices.topk_weights, choices.slots, choices.active});
  }
  __syncthreads();
}

/// A block: one expert.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads) token_router_kernel(const Work work) {
  __shared__ float sums_of_warps[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const Bf16* const row = work.router + static_cast<std::int64_t>(blockIdx.x) * work.hidden;
  constexpr int kVectors = 4;
  constexpr int kStep = kThreads * kElements;
  float sums[2] = {};
  uint4 weights[kVectors];
  const auto load = [&](int from) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      weights[v] = load_weights<kAligned>(row, from + v * kStep + thread * kElements, work.hidden);
    }
  };
  load(0);
  wait_for_previous_kernel();
  allow_next_kernel();
  for (int from = 0; from < work.hidden; from += kVectors * kStep) {
    if (from > 0) load(from);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = from + v * kStep + thread * kElements;
      add_products(weights[v], load_token<kAligned>(work.x, at, work.hidden), sums);
    }
  }
  const float sum = warp_sum(sums[0] + sums[1]);
  if (lane == 0) sums_of_warps[warp] = sum;
  __syncthreads();
  if (thread > 0) return;
  float logit = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) logit += sums_of_warps[w];
  work.logits[blockIdx.x] = logit;
}

/// A warp: features in turn, a row of gate and one of up each.
template <int kPerLane, bool kAligned>
__global__ void __launch_bounds__(kThreads, kGateUpBlocks) token_gate_up_kernel(const Work work) {
  __shared__ Choices choices;
  wait_for_previous_kernel();
  allow_next_kernel();
  choose<kPerLane>(work, choices);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warps = static_cast<int>(gridDim.x) * kWarps;
  const int features = work.top_k * work.intermediate;
  constexpr int kStep = kWarpSize * kElements;
  for (int n = static_cast<int>(blockIdx.x) * kWarps + warp; n < features; n += warps) {
    const int slot = n / work.intermediate;
    const int feature = n - slot * work.intermediate;
    const std::int64_t at =
        (static_cast<std::int64_t>(choices.active[slot].expert) * work.intermediate + feature) *
        work.hidden;
    float gate_sums[2] = {};
    float up_sums[2] = {};
    for (int from = lane * kElements; from - lane * kElements < work.hidden;
         from += kGateUpVectors * kStep) {
      uint4 gate[kGateUpVectors];
      uint4 up[kGateUpVectors];
#pragma unroll
      for (int v = 0; v < kGateUpVectors; ++v) {
        gate[v] = load_weights<kAligned>(work.gate + at, from + v * kStep, work.hidden);
        up[v] = load_weights<kAligned>(work.up + at, from + v * kStep, work.hidden);
      }
#pragma unroll
      for (int v = 0; v < kGateUpVectors; ++v) {
        const uint4 x = load_token<kAligned>(work.x, from + v * kStep, work.hidden);
        add_products(gate[v], x, gate_sums);
        add_products(up[v], x, up_sums);
      }
    }
    const float low = warp_sum(gate_sums[0] + gate_sums[1]);
    const float high = warp_sum(up_sums[0] + up_sums[1]);
    if (lane == 0) {
      work.act[slot * work.act_stride + feature] = from_float<Bf16>(silu<Bf16>(low) * high);
    }
  }
}

/// A block: kRows features at a time, of all slots; its warps take (slot, part of I) in turn and leave
/// products in shared memory, to be added up in the order of slots.
template <int kPerLane, int kRows, bool kAligned>
__global__ void __launch_bounds__(kThreads, kDownBlocks) token_down_kernel(const Work work) {
  constexpr int kVectors = kDownVectors / kRows;
  __shared__ Choices choices;
  __shared__ float products[2][kMostTokenSlots][kRows];
  choose<kPerLane>(work, choices);  // the first product has waited for the logits
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int units = work.top_k * work.parts;
  const int vectors = (work.intermediate + kElements - 1) / kElements;
  const int of_part = (vectors + work.parts - 1) / work.parts;
  const int step = static_cast<int>(gridDim.x) * kRows;

  uint4 weights[kRows][kVectors];
  // Elements of a unit's part of a row: [begin, end).
  const auto begin = [&](int unit) { return unit % work.parts * of_part * kElements; };
  const auto end = [&](int unit) {
    return min(begin(unit) + of_part * kElements, work.intermediate);
  };
  const auto load = [&](int first_row, int unit, int from) {
    const Bf16* const rows =
        work.down +
        (static_cast<std::int64_t>(choices.active[unit / work.parts].expert) * work.hidden +
         first_row) *
            work.intermediate;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int length = first_row + r < work.hidden ? end(unit) : 0;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        weights[r][v] =
            load_weights<kAligned>(rows + static_cast<std::int64_t>(r) * work.intermediate,
                                   from + (v * kWarpSize + lane) * kElements, length);
      }
    }
  };
  int row = static_cast<int>(blockIdx.x) * kRows;
  if (warp < units && row < work.hidden) load(row, warp, begin(warp));
  wait_for_previous_kernel();
  allow_next_kernel();
  for (int buffer = 0; row < work.hidden; row += step, buffer ^= 1) {
    for (int unit = warp; unit < units; unit += kWarps) {
      if (unit != warp) load(row, unit, begin(unit));
      const Bf16* const token = work.act + unit / work.parts * work.act_stride;
      float sums[kRows][2] = {};
      for (int from = begin(unit);;) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const uint4 act =
              load_token<kAligned>(token, from + (v * kWarpSize + lane) * kElements, end(unit));
#pragma unroll
          for (int r = 0; r < kRows; ++r) add_products(weights[r][v], act, sums[r]);
        }
        from += kVectors * kWarpSize * kElements;
        if (from >= end(unit)) break;
        load(row, unit, from);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float product = warp_sum(sums[r][0] + sums[r][1]);
        if (lane == 0) products[buffer][unit][r] = product;
      }
    }
    // The next rows are on their way while these are added up.
    if (warp < units && row + step < work.hidden) load(row + step, warp, begin(warp));
    __syncthreads();
    if (thread >= kRows || row + thread >= work.hidden) continue;
    float total = 0;
    for (int slot = 0; slot < work.top_k; ++slot) {
      float product = 0;
      for (int part = 0; part < work.parts; ++part) {
        product += products[buffer][slot * work.parts + part][thread];
      }
      total = fmaf(choices.topk_weights[slot], product, total);
    }
    work.y[row + thread] = from_float<Bf16>(total);
  }
}

// --- host ----------------------------------------------------------------------------------------
std::int64_t blocks_of(std::int64_t count, std::int64_t block) {
  return (count + block - 1) / block;
}

Work work_of(const TokenLayer& layer) {
  MOE_INTERNAL_CHECK(layer.top_k <= kMostTokenSlots, "top_k={} must be at most {}", layer.top_k,
                     kMostTokenSlots);
  Work work{};
  work.router = static_cast<const Bf16*>(layer.router);
  work.gate = static_cast<const Bf16*>(layer.gate);
  work.up = static_cast<const Bf16*>(layer.up);
  work.down = static_cast<const Bf16*>(layer.down);
  work.logits = layer.logits;
  work.act = static_cast<Bf16*>(layer.act);
  work.hidden = static_cast<int>(layer.hidden);
  work.intermediate = static_cast<int>(layer.intermediate);
  work.experts = static_cast<int>(layer.experts);
  work.top_k = static_cast<int>(layer.top_k);
  work.act_stride = static_cast<int>(layer.act_stride);
  return work;
}

/// body.operator()<kPerLane, kAligned>().
template <class Body>
void with_experts(std::int64_t experts, bool aligned, Body&& body) {
  with_stream_registers_for(experts, [&]<int kPerLane>() {
    if (aligned) {
      body.template operator()<kPerLane, true>();
    } else {
      body.template operator()<kPerLane, false>();
    }
  });
}

}  // namespace

bool is_one_token(const Problem& problem, std::int64_t tokens) {
  const std::int64_t slots = with_shared_slots(problem).top_k;
  if (tokens != 1 || slots > kMostTokenSlots) return false;
  return StreamBlock::is_plain(problem) ||
         slots * blocks_of(problem.shape.intermediate, kUnitElements) <= kMostDownUnits;
}

TokenConfig choose_token_config(const Problem& problem, int multiprocessors) {
  // As many blocks as are resident at once, and no more than finish in as many rounds: the last round
  // would otherwise leave the memory idle.
  const auto grid = [&](std::int64_t items, int blocks) {
    const std::int64_t rounds = blocks_of(items, std::int64_t{multiprocessors} * blocks);
    return static_cast<int>(blocks_of(items, rounds));
  };
  const Shape& shape = problem.shape;
  TokenConfig config;
  const std::int64_t features = shape.top_k * shape.intermediate + problem.shared_intermediate;
  config.gate_up_blocks =
      grid(blocks_of(gate_up_items(features, problem.activation.gated()), kWarps), kGateUpBlocks);
  // As many rows as fit the registers beside each other, all that a warp has of each.
  std::int64_t of_lane = 0;
  if (StreamBlock::is_plain(problem)) {
    config.parts = static_cast<int>(std::max<std::int64_t>(1, kWarps / shape.top_k));
    of_lane =
        blocks_of(blocks_of(shape.intermediate, std::int64_t{kElements} * config.parts), kWarpSize);
  } else {
    of_lane = blocks_of(
        with_shared_slots(problem).top_k * blocks_of(shape.intermediate, kUnitElements), kWarps);
  }
  config.rows = of_lane <= kDownVectors / 4 ? 4 : of_lane <= kDownVectors / 2 ? 2 : 1;
  config.down_blocks = grid(blocks_of(shape.hidden, config.rows), kDownBlocks);
  return config;
}

std::string to_string(const TokenConfig& config) {
  return fmt::format(
      "one token; gate|up by {} blocks, a feature a warp; down by {} blocks, {} rows at once in "
      "{}, combined there",
      config.gate_up_blocks, config.down_blocks, config.rows,
      config.parts > 0 ? fmt::format("{} parts", config.parts) : "units of 256 elements");
}

void token_router(const TokenLayer& layer, const void* x, cudaStream_t stream) {
  if (!layer.block.plain) {
    token_block_router(layer, x, stream);
    return;
  }
  Work work = work_of(layer);
  work.x = static_cast<const Bf16*>(x);
  const bool aligned = in_widest_vectors(layer.hidden * 2, {layer.router, x});
  const auto kernel = aligned ? token_router_kernel<true> : token_router_kernel<false>;
  launch_overlapping("token_router_kernel", kernel, dim3(static_cast<unsigned>(layer.experts)),
                     dim3(kThreads), 0, stream, work);
}

void token_gate_up(const TokenLayer& layer, const void* x, const TokenConfig& config,
                   cudaStream_t stream) {
  if (!layer.block.plain) {
    token_block_gate_up(layer, x, config, stream);
    return;
  }
  Work work = work_of(layer);
  work.x = static_cast<const Bf16*>(x);
  const bool aligned = in_widest_vectors(layer.hidden * 2, {layer.gate, layer.up, x});
  with_experts(layer.experts, aligned, [&]<int kPerLane, bool kAligned>() {
    launch_overlapping("token_gate_up_kernel", token_gate_up_kernel<kPerLane, kAligned>,
                       dim3(static_cast<unsigned>(config.gate_up_blocks)), dim3(kThreads), 0,
                       stream, work);
  });
}

void token_down(const TokenLayer& layer, void* y, const TokenConfig& config, cudaStream_t stream) {
  if (!layer.block.plain) {
    token_block_down(layer, y, config, stream);
    return;
  }
  Work work = work_of(layer);
  work.y = static_cast<Bf16*>(y);
  work.parts = config.parts;
  MOE_INTERNAL_CHECK(config.parts > 0 && layer.top_k * config.parts <= kMostTokenSlots,
                     "top_k={} in {} parts", layer.top_k, config.parts);
  const bool aligned = in_widest_vectors(layer.intermediate * 2, {layer.down, layer.act}) &&
                       layer.act_stride % kElements == 0;
  with_experts(layer.experts, aligned, [&]<int kPerLane, bool kAligned>() {
    const auto launch = [&](void (*kernel)(Work)) {
      launch_overlapping("token_down_kernel", kernel,
                         dim3(static_cast<unsigned>(config.down_blocks)), dim3(kThreads), 0, stream,
                         work);
    };
    if (config.rows == 1) {
      launch(token_down_kernel<kPerLane, 1, kAligned>);
    } else if (config.rows == 2) {
      launch(token_down_kernel<kPerLane, 2, kAligned>);
    } else {
      MOE_INTERNAL_CHECK(config.rows == 4, "no kernel for {} rows", config.rows);
      launch(token_down_kernel<kPerLane, 4, kAligned>);
    }
  });
}

}  // namespace moe::cuda
