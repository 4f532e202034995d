#include "cuda/ops/stream_token.h"

#include <algorithm>

#include "core/expert_set.h"
#include "cuda/device/stream_choose.cuh"
#include "cuda/device/swiglu.cuh"
#include "cuda/ops/stream_router.h"
#include "cuda/ops/stream_token_parts.cuh"

namespace moe::cuda {
namespace {

/// What the products of a plain layer know of a call.
struct Work {
  const Bf16* gate;
  const Bf16* up;
  const Bf16* down;
  const Bf16* x;
  const float* logits;
  std::uint64_t* choices;
  Bf16* act;
  Bf16* y;
  int hidden, intermediate, experts, top_k;
  int act_stride;
  int parts;
};

/// The router's, of any layer.
struct RouterWork {
  const Bf16* router;
  const Bf16* shared_switch;
  const float* biases;
  const Bf16* x;
  float* logits;
  float* switch_logit;
  std::uint64_t* choices;
  int hidden;
  int experts;  // none of given routes
  int slots;
};

/// A block: one expert, or behind them the shared one's switch. Of given routes without a switch there is
/// one block, which has nothing to multiply.
template <bool kPlain, bool kAligned>
__global__ void __launch_bounds__(kThreads) token_router_kernel(const RouterWork work) {
  __shared__ float sums_of_warps[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const auto expert = static_cast<int>(blockIdx.x);
  const bool is_switch = !kPlain && expert >= work.experts;
  const Bf16* const row = is_switch ? work.shared_switch
                                    : work.router + static_cast<std::int64_t>(expert) * work.hidden;
  const int length = !kPlain && row == nullptr ? 0 : work.hidden;
  const bool biased = !kPlain && work.biases != nullptr && !is_switch && thread == 0;
  constexpr int kVectors = 4;
  constexpr int kStep = kThreads * kElements;
  float sums[2] = {};
  uint4 weights[kVectors];
  const auto load = [&](int from) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      weights[v] = load_weights<kAligned>(row, from + v * kStep + thread * kElements, length);
    }
  };
  load(0);
  float logit = biased ? __ldg(work.biases + expert) : 0.0F;
  wait_for_previous_kernel();
  allow_next_kernel();
  for (int from = 0; from < length; from += kVectors * kStep) {
    if (from > 0) load(from);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = from + v * kStep + thread * kElements;
      add_products(weights[v], load_token<kAligned>(work.x, at, length), sums);
    }
  }
  const float sum = warp_sum(sums[0] + sums[1]);
  if (lane == 0) sums_of_warps[warp] = sum;
  __syncthreads();
  if (expert == 0 && thread < work.slots) work.choices[thread] = 0;
  if (thread > 0 || length == 0) return;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) logit += sums_of_warps[w];
  *(is_switch ? work.switch_logit : work.logits + expert) = logit;
}

/// A warp: features in turn, a row of gate and one of up each.
template <int kPerLane, bool kAligned>
__global__ void __launch_bounds__(kThreads, kGateUpBlocks) token_gate_up_kernel(const Work work) {
  __shared__ Candidates candidates;
  __shared__ TokenChoices choices;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  wait_for_previous_kernel();
  allow_next_kernel();
  if (warp == 0) {
    float logits[kPerLane];
    load_logits(work.logits, lane, work.experts, logits);
    softmax_top_k_of_row(logits, lane, work.experts, work.top_k, candidates,
                         PlainChoice{choices.experts, choices.weights});
  }
  __syncthreads();
  if (warp == 0 && blockIdx.x == gridDim.x - 1) {
    publish_choices(choices, lane, work.top_k, work.choices);
  }
  const int warps = static_cast<int>(gridDim.x) * kWarps;
  const int features = work.top_k * work.intermediate;
  constexpr int kStep = kWarpSize * kElements;
  for (int n = static_cast<int>(blockIdx.x) * kWarps + warp; n < features; n += warps) {
    const int slot = n / work.intermediate;
    const int feature = n - slot * work.intermediate;
    const std::int64_t at =
        (static_cast<std::int64_t>(choices.experts[slot]) * work.intermediate + feature) *
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
template <int kRows, bool kAligned>
__global__ void __launch_bounds__(kThreads, kDownBlocks) token_down_kernel(const Work work) {
  constexpr int kVectors = kDownVectors / kRows;
  __shared__ TokenChoices choices;
  __shared__ float products[2][kMostTokenSlots][kRows];
  await_choices(work.choices, work.top_k, choices);
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
        (static_cast<std::int64_t>(choices.experts[unit / work.parts]) * work.hidden + first_row) *
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
      total = fmaf(choices.weights[slot], product, total);
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
  work.gate = static_cast<const Bf16*>(layer.gate);
  work.up = static_cast<const Bf16*>(layer.up);
  work.down = static_cast<const Bf16*>(layer.down);
  work.logits = layer.logits;
  work.choices = layer.choices;
  work.act = static_cast<Bf16*>(layer.act);
  work.hidden = static_cast<int>(layer.hidden);
  work.intermediate = static_cast<int>(layer.intermediate);
  work.experts = static_cast<int>(layer.experts);
  work.top_k = static_cast<int>(layer.top_k);
  work.act_stride = static_cast<int>(layer.act_stride);
  return work;
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
  // Those of a shared expert are divided among all blocks.
  const std::int64_t routed = shape.top_k * shape.intermediate;
  config.gate_up_blocks =
      grid(blocks_of(gate_up_items(routed, problem.activation.gated()), kWarps), kGateUpBlocks);
  // As many rows as fit the registers beside each other, all that a warp has of each.
  std::int64_t of_lane = 0;
  std::int64_t most_of_two = kDownVectors / 2;
  if (StreamBlock::is_plain(problem)) {
    config.parts = static_cast<int>(std::max<std::int64_t>(1, kWarps / shape.top_k));
    of_lane =
        blocks_of(blocks_of(shape.intermediate, std::int64_t{kElements} * config.parts), kWarpSize);
  } else {
    of_lane = blocks_of(
        with_shared_slots(problem).top_k * blocks_of(shape.intermediate, kUnitElements), kWarps);
    most_of_two = kMostUnitsOfTwoRows;
  }
  config.rows = of_lane <= kDownVectors / 4 ? 4 : of_lane <= most_of_two ? 2 : 1;
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
  const StreamBlock& block = layer.block;
  const RouterWork work{.router = static_cast<const Bf16*>(layer.router),
                        .shared_switch = static_cast<const Bf16*>(block.shared_switch),
                        .biases = block.router_bias,
                        .x = static_cast<const Bf16*>(x),
                        .logits = layer.logits,
                        .switch_logit = layer.switch_logit,
                        .choices = layer.choices,
                        .hidden = static_cast<int>(layer.hidden),
                        .experts = block.given ? 0 : static_cast<int>(layer.experts),
                        .slots = static_cast<int>(layer.top_k) + block.parts};
  const int rows = work.experts + (block.shared_switch == nullptr ? 0 : 1);
  const bool aligned = in_widest_vectors(layer.hidden * 2, {layer.router, x, block.shared_switch});
  const auto launch = [&](void (*kernel)(RouterWork)) {
    launch_overlapping("token_router_kernel", kernel,
                       dim3(static_cast<unsigned>(std::max(1, rows))), dim3(kThreads), 0, stream,
                       work);
  };
  if (block.plain) {
    launch(aligned ? token_router_kernel<true, true> : token_router_kernel<true, false>);
  } else {
    launch(aligned ? token_router_kernel<false, true> : token_router_kernel<false, false>);
  }
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
  with_stream_registers_for(layer.experts, [&]<int kPerLane>() {
    launch_overlapping(
        "token_gate_up_kernel",
        aligned ? token_gate_up_kernel<kPerLane, true> : token_gate_up_kernel<kPerLane, false>,
        dim3(static_cast<unsigned>(config.gate_up_blocks)), dim3(kThreads), 0, stream, work);
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
  const auto of_rows = [&]<int kRows>() {
    launch_overlapping("token_down_kernel",
                       aligned ? token_down_kernel<kRows, true> : token_down_kernel<kRows, false>,
                       dim3(static_cast<unsigned>(config.down_blocks)), dim3(kThreads), 0, stream,
                       work);
  };
  if (config.rows == 1) {
    of_rows.template operator()<1>();
  } else if (config.rows == 2) {
    of_rows.template operator()<2>();
  } else {
    MOE_INTERNAL_CHECK(config.rows == 4, "no kernel for {} rows", config.rows);
    of_rows.template operator()<4>();
  }
}

}  // namespace moe::cuda
