// One token of layers that are not plain: the last block of the router chooses for all, and the products
// read what it wrote. NOTE: choosing in every block, as the plain kernels do, takes 5 us longer: of the
// rules' code, cold in the caches, every multiprocessor would fetch all (docs/levels/level09_streaming.md).
#include <algorithm>

#include "cuda/device/activation.cuh"
#include "cuda/device/named_barrier.cuh"
#include "cuda/device/stream_choose.cuh"
#include "cuda/ops/stream_router.h"
#include "cuda/ops/stream_token_parts.cuh"

namespace moe::cuda {
namespace {

/// router_row · x by all threads of a block, in fp32; thread 0 has it. Weights are asked for before the
/// kernels before this one are waited for.
template <bool kAligned>
__device__ __forceinline__ float multiply_by_block(const Bf16* row, const Bf16* token, int length) {
  __shared__ float sums_of_warps[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
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
  wait_for_previous_kernel();
  allow_next_kernel();
  for (int from = 0; from < length; from += kVectors * kStep) {
    if (from > 0) load(from);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = from + v * kStep + thread * kElements;
      add_products(weights[v], load_token<kAligned>(token, at, length), sums);
    }
  }
  const float sum = warp_sum(sums[0] + sums[1]);
  if (thread % kWarpSize == 0) sums_of_warps[thread / kWarpSize] = sum;
  named_barrier_sync(1, kThreads);  // a warp beside these has other things to do
  float product = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) product += sums_of_warps[w];
  return product;
}

/// Products of x with two rows of `hidden` elements, by a warp: gate and up of a feature, or two of up.
template <bool kAligned>
__device__ __forceinline__ void multiply_rows(const Bf16* token, int length, const Bf16* first_row,
                                              const Bf16* second_row, float& first_sum,
                                              float& second_sum) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  constexpr int kStep = kWarpSize * kElements;
  float first_sums[2] = {};
  float second_sums[2] = {};
  for (int from = lane * kElements; from - lane * kElements < length;
       from += kGateUpVectors * kStep) {
    uint4 first[kGateUpVectors];
    uint4 second[kGateUpVectors];
#pragma unroll
    for (int v = 0; v < kGateUpVectors; ++v) {
      first[v] = load_weights<kAligned>(first_row, from + v * kStep, length);
      second[v] = load_weights<kAligned>(second_row, from + v * kStep, length);
    }
#pragma unroll
    for (int v = 0; v < kGateUpVectors; ++v) {
      const uint4 x = load_token<kAligned>(token, from + v * kStep, length);
      add_products(first[v], x, first_sums);
      add_products(second[v], x, second_sums);
    }
  }
  first_sum = warp_sum(first_sums[0] + first_sums[1]);
  second_sum = warp_sum(second_sums[0] + second_sums[1]);
}

// --- router --------------------------------------------------------------------------------------
struct RouterWork {
  const Bf16* router;
  const Bf16* x;
  float* logits;
  float* switch_logit;
  std::int32_t* topk_idx;
  float* topk_weights;
  unsigned* arrivals;
  int hidden, experts, top_k;
  int routed_experts;  // whose logits are made: none of given routes
  StreamBlock block;
};

/// Of the thread that wrote a logit: whether it was the last. Then it sees the others'.
__device__ __forceinline__ bool is_last_logit(unsigned* arrivals, unsigned blocks) {
  __threadfence();
  const bool last = atomicAdd(arrivals, 1U) == blocks - 1;
  if (last) *arrivals = 0;
  __threadfence();
  return last;
}

/// Threads of a block: a ninth warp has no part in the product.
template <StreamRule kRule>
constexpr int kRouterThreads = kThreads + (kRule == StreamRule::kGiven ? 0 : kWarpSize);

/// A block: one expert, or the shared one's switch; the last chooses. Of given routes without a switch
/// there is one block, which has nothing to multiply.
/// NOTE: the ninth warp of each block chooses from whatever logits are there, for the sake of the
/// multiprocessor's instruction cache and the selection bias: the last block's choice would wait for its
/// code, line by line, from memory.
template <StreamRule kRule, int kPerLane, bool kAligned>
__global__ void __launch_bounds__(kRouterThreads<kRule>)
    token_block_router_kernel(const __grid_constant__ RouterWork work) {
  __shared__ Candidates candidates[2];
  __shared__ std::int32_t unused_idx[kMostTokenSlots];
  __shared__ float unused_weights[kMostTokenSlots];
  const auto expert = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const StreamBlock& block = work.block;
  const bool chooses_for_all = thread < kThreads;
  if (chooses_for_all) {
    const bool is_switch = expert == work.routed_experts;
    const float* const biases = is_switch ? nullptr : block.router_bias;
    const float bias = biases != nullptr && thread == 0 ? __ldg(biases + expert) : 0.0F;
    if (kRule != StreamRule::kGiven || block.shared_switch != nullptr) {
      const Bf16* const row = is_switch
                                  ? static_cast<const Bf16*>(block.shared_switch)
                                  : work.router + static_cast<std::int64_t>(expert) * work.hidden;
      const float logit = bias + multiply_by_block<kAligned>(row, work.x, work.hidden);
      if (thread == 0) *(is_switch ? work.switch_logit : work.logits + expert) = logit;
    } else {
      wait_for_previous_kernel();
      allow_next_kernel();
    }
    if (thread >= kWarpSize) return;
    const bool last = thread == 0 && is_last_logit(work.arrivals, gridDim.x);
    if (__shfl_sync(kAllLanes, last ? 1 : 0, 0) == 0) return;
    __syncwarp();  // all lanes see what thread 0 does
  }
  const PlainChoice sink{chooses_for_all ? work.topk_idx : unused_idx,
                         chooses_for_all ? work.topk_weights : unused_weights};
  choose_of_token<kRule, kPerLane>(block, work.logits, 0, work.experts, work.top_k,
                                   candidates[chooses_for_all ? 0 : 1], sink);
  if (!chooses_for_all) return;
  for (int part = thread; part < block.parts; part += kWarpSize) {
    work.topk_idx[work.top_k + part] = work.experts + part;
    work.topk_weights[work.top_k + part] = shared_weight(block, work.switch_logit);
  }
}

// --- gate and up ---------------------------------------------------------------------------------
struct GateUpWork {
  const Bf16* gate;
  const Bf16* up;
  const Bf16* shared_gate;
  const Bf16* shared_up;
  const float* gate_bias;
  const float* up_bias;
  const Bf16* x;
  const std::int32_t* topk_idx;
  const float* input_weights;  // [S]; null: 1
  Bf16* act;
  int hidden, intermediate, shared, top_k, slots;
  int items;
  int act_stride;
  bool gated;
  ActivationStep activation;
};

/// One of the features of gate and up that the token takes, numbered through all its slots.
struct Feature {
  std::int64_t row;  // of the routed or of the shared experts' matrices
  int slot;
  int feature;  // of the slot's expert
  bool is_shared;
  bool used;
};
__device__ __forceinline__ Feature feature_at(const GateUpWork& work, const std::int32_t* experts,
                                              int n) {
  const int slot = n / work.intermediate;
  const int feature = n - slot * work.intermediate;
  const int routed = work.top_k * work.intermediate;
  if (n >= routed) {
    const bool exists = n - routed < work.shared;
    return {n - routed, slot, feature, exists, exists};
  }
  const int expert = experts[slot];
  return {static_cast<std::int64_t>(expert) * work.intermediate + feature, slot, feature, false,
          expert >= 0};
}

/// A feature's gate and up, or two features of up, by a warp.
template <bool kAligned>
__device__ __forceinline__ void multiply_features(const GateUpWork& work,
                                                  const std::int32_t* experts, int n) {
  const Feature first = feature_at(work, experts, work.gated ? n : 2 * n);
  const Feature second = work.gated ? first : feature_at(work, experts, 2 * n + 1);
  if (!first.used && !second.used) return;
  const auto row_of = [&](const Feature& at, const Bf16* routed, const Bf16* shared) {
    // Something is multiplied for a feature that is not used beside one that is; it is not stored.
    return (at.is_shared ? shared : routed) + (at.used ? at.row : 0) * work.hidden;
  };
  const auto bias_of = [&](const Feature& at, const float* biases) {
    return biases != nullptr && at.used && !at.is_shared ? __ldg(biases + at.row) : 0.0F;
  };
  const float first_bias = bias_of(first, work.gated ? work.gate_bias : work.up_bias);
  const float second_bias = bias_of(second, work.up_bias);
  const Bf16* const first_row = work.gated ? row_of(first, work.gate, work.shared_gate)
                                           : row_of(first, work.up, work.shared_up);
  float low = 0;
  float high = 0;
  multiply_rows<kAligned>(work.x, work.hidden, first_row, row_of(second, work.up, work.shared_up),
                          low, high);
  if (threadIdx.x % kWarpSize != 0) return;
  const auto weigh = [&](const Feature& at, float product, float bias) {
    return fmaf(work.input_weights == nullptr ? 1.0F : work.input_weights[at.slot], product, bias);
  };
  low = weigh(first, low, first_bias);
  high = weigh(second, high, second_bias);
  const auto store = [&](const Feature& at, float value) {
    if (at.used) work.act[at.slot * work.act_stride + at.feature] = from_float<Bf16>(value);
  };
  if (work.gated) {
    store(first, gated(work.activation, low, high));
  } else {
    store(first, relu2(low));
    store(second, relu2(high));
  }
}

/// Warps: features in turn.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads, kGateUpBlocks)
    token_block_gate_up_kernel(const __grid_constant__ GateUpWork work) {
  __shared__ std::int32_t experts[kMostTokenSlots];
  const int thread = static_cast<int>(threadIdx.x);
  wait_for_previous_kernel();
  allow_next_kernel();
  if (thread < work.slots) experts[thread] = work.topk_idx[thread];
  __syncthreads();
  const int warps = static_cast<int>(gridDim.x) * kWarps;
  for (int n = static_cast<int>(blockIdx.x) * kWarps + thread / kWarpSize; n < work.items;
       n += warps) {
    multiply_features<kAligned>(work, experts, n);
  }
}

// --- down ----------------------------------------------------------------------------------------
struct DownWork {
  const Bf16* down;
  const Bf16* shared_down;
  const float* bias;
  const Bf16* act;
  const std::int32_t* topk_idx;
  const float* output_weights;  // [S]; null: 1
  Bf16* y;
  int hidden, intermediate, shared, top_k, slots;
  int units_of_slot, units;  // the latter with what makes the last round whole
  int act_stride;
};

/// A piece of a row of down, the same of all rows: a vector a lane.
struct alignas(16) DownUnit {
  const Bf16* rows;
  int stride;
  int act_at;
  int left;  // elements from here to the row's end; none where the slot is not used
  float weight;
};
__device__ __forceinline__ float output_weight(const DownWork& work, int slot) {
  return work.output_weights == nullptr ? 1.0F : work.output_weights[slot];
}
__device__ __forceinline__ DownUnit unit_at(const DownWork& work, int unit) {
  constexpr int kOfUnit = static_cast<int>(kUnitElements);
  const int slot = unit / work.units_of_slot;
  const int at = (unit - slot * work.units_of_slot) * kOfUnit;
  if (slot >= work.slots) return {work.down, 0, 0, 0, 0};
  DownUnit found{nullptr, work.intermediate, slot * work.act_stride + at, 0,
                 output_weight(work, slot)};
  if (slot >= work.top_k) {
    const int first = (slot - work.top_k) * work.intermediate;
    found.rows = work.shared_down + first + at;
    found.stride = work.shared;
    found.left = min(work.intermediate, work.shared - first) - at;
    return found;
  }
  const int expert = work.topk_idx[slot];
  if (expert < 0) return {work.down, 0, 0, 0, 0};
  found.rows = work.down + static_cast<std::int64_t>(expert) * work.hidden * work.intermediate + at;
  found.left = work.intermediate - at;
  return found;
}

/// A block: kRows features at a time, of all slots; its warps take units in turn and leave sums in shared
/// memory, to be added up in the order of warps.
template <int kRows, bool kAligned>
__global__ void __launch_bounds__(kThreads, kDownBlocks)
    token_block_down_kernel(const __grid_constant__ DownWork work) {
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ float sums[2][kWarps][kRows];
  constexpr int kVectors = kDownVectors / kRows;
  auto* const units = reinterpret_cast<DownUnit*>(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  // What the router wrote is complete: the first product has waited for it.
  for (int unit = thread; unit < work.units; unit += kThreads) units[unit] = unit_at(work, unit);
  __syncthreads();

  uint4 weights[kRows][kVectors];
  float bias = 0;  // of row `lane` and the slot that is this warp's
  const auto bias_of = [&](int row, int slot) {
    const int expert =
        work.bias != nullptr && slot < work.top_k && lane < kRows && row + lane < work.hidden
            ? work.topk_idx[slot]
            : -1;
    return expert < 0
               ? 0.0F
               : __ldg(work.bias + static_cast<std::int64_t>(expert) * work.hidden + row + lane);
  };
  const auto load = [&](int row, int first) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const DownUnit& unit = units[first + v * kWarps + warp];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        weights[r][v] =
            load_weights<kAligned>(unit.rows + static_cast<std::int64_t>(row + r) * unit.stride,
                                   lane * kElements, row + r < work.hidden ? unit.left : 0);
      }
    }
  };
  const int step = static_cast<int>(gridDim.x) * kRows;
  int row = static_cast<int>(blockIdx.x) * kRows;
  if (row < work.hidden) {
    load(row, 0);
    bias = bias_of(row, warp);
  }
  wait_for_previous_kernel();
  allow_next_kernel();
  for (int buffer = 0; row < work.hidden; row += step, buffer ^= 1) {
    float totals[kRows] = {};
    for (int first = 0;;) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const DownUnit& unit = units[first + v * kWarps + warp];
        const uint4 act = load_token<kAligned>(work.act + unit.act_at, lane * kElements, unit.left);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float products[2] = {};
          add_products(weights[r][v], act, products);
          totals[r] = fmaf(unit.weight, products[0] + products[1], totals[r]);
        }
      }
      first += kVectors * kWarps;
      if (first >= work.units) break;
      load(row, first);
    }
    float of_biases = 0;
    if (work.bias != nullptr) {
      if (warp < work.top_k) of_biases = output_weight(work, warp) * bias;
      for (int slot = warp + kWarps; slot < work.top_k; slot += kWarps) {
        of_biases = fmaf(output_weight(work, slot), bias_of(row, slot), of_biases);
      }
    }
    // The next rows are on their way while these are added up.
    if (row + step < work.hidden) {
      load(row + step, 0);
      bias = bias_of(row + step, warp);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float total = warp_sum(totals[r]);
      if (lane == r) sums[buffer][warp][r] = total + of_biases;
    }
    __syncthreads();
    if (thread >= kRows || row + thread >= work.hidden) continue;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[buffer][w][thread];
    work.y[row + thread] = from_float<Bf16>(total);
  }
}

// --- host ----------------------------------------------------------------------------------------
template <StreamRule kRule, int kPerLane>
void launch_router(const RouterWork& work, int blocks, bool aligned, cudaStream_t stream) {
  launch_overlapping("token_block_router_kernel",
                     aligned ? token_block_router_kernel<kRule, kPerLane, true>
                             : token_block_router_kernel<kRule, kPerLane, false>,
                     dim3(static_cast<unsigned>(blocks)), dim3(kRouterThreads<kRule>), 0, stream,
                     work);
}

const Bf16* elements(const void* tensor) {
  return static_cast<const Bf16*>(tensor);
}

}  // namespace

void token_block_router(const TokenLayer& layer, const void* x, cudaStream_t stream) {
  const StreamBlock& block = layer.block;
  RouterWork work{};
  work.router = elements(layer.router);
  work.x = elements(x);
  work.logits = layer.logits;
  work.switch_logit = layer.switch_logit;
  work.topk_idx = layer.topk_idx;
  work.topk_weights = layer.topk_weights;
  work.arrivals = layer.arrivals;
  work.hidden = static_cast<int>(layer.hidden);
  work.experts = static_cast<int>(layer.experts);
  work.top_k = static_cast<int>(layer.top_k);
  work.routed_experts = block.given ? 0 : work.experts;
  work.block = block;
  const int blocks = std::max(1, work.routed_experts + (block.shared_switch == nullptr ? 0 : 1));
  const bool aligned = in_widest_vectors(layer.hidden * 2, {layer.router, x, block.shared_switch});
  if (block.given) {
    launch_router<StreamRule::kGiven, 1>(work, blocks, aligned, stream);
    return;
  }
  with_stream_registers_for(layer.experts, [&]<int kPerLane>() {
    if (block.plain_rule) {
      launch_router<StreamRule::kPlain, kPerLane>(work, blocks, aligned, stream);
    } else {
      launch_router<StreamRule::kRule, kPerLane>(work, blocks, aligned, stream);
    }
  });
}

void token_block_gate_up(const TokenLayer& layer, const void* x, const TokenConfig& config,
                         cudaStream_t stream) {
  const StreamBlock& block = layer.block;
  GateUpWork work{};
  work.gate = elements(layer.gate);
  work.up = elements(layer.up);
  work.shared_gate = elements(block.shared_gate);
  work.shared_up = elements(block.shared_up);
  work.gate_bias = block.gate_bias;
  work.up_bias = block.up_bias;
  work.x = elements(x);
  work.topk_idx = layer.topk_idx;
  work.input_weights = block.weight_on_input ? layer.topk_weights : nullptr;
  work.act = static_cast<Bf16*>(layer.act);
  work.hidden = static_cast<int>(layer.hidden);
  work.intermediate = static_cast<int>(layer.intermediate);
  work.shared = block.shared;
  work.top_k = static_cast<int>(layer.top_k);
  work.slots = work.top_k + block.parts;
  work.items =
      static_cast<int>(gate_up_items(layer.top_k * layer.intermediate + block.shared, block.gated));
  work.act_stride = static_cast<int>(layer.act_stride);
  work.gated = block.gated;
  work.activation = block.activation;
  const bool aligned = in_widest_vectors(
      layer.hidden * 2, {layer.gate, layer.up, x, block.shared_gate, block.shared_up});
  launch_overlapping("token_block_gate_up_kernel",
                     aligned ? token_block_gate_up_kernel<true> : token_block_gate_up_kernel<false>,
                     dim3(static_cast<unsigned>(config.gate_up_blocks)), dim3(kThreads), 0, stream,
                     work);
}

void token_block_down(const TokenLayer& layer, void* y, const TokenConfig& config,
                      cudaStream_t stream) {
  const StreamBlock& block = layer.block;
  DownWork work{};
  work.down = elements(layer.down);
  work.shared_down = elements(block.shared_down);
  work.bias = block.down_bias;
  work.act = elements(layer.act);
  work.topk_idx = layer.topk_idx;
  work.output_weights = block.weight_on_input ? nullptr : layer.topk_weights;
  work.y = static_cast<Bf16*>(y);
  work.hidden = static_cast<int>(layer.hidden);
  work.intermediate = static_cast<int>(layer.intermediate);
  work.shared = block.shared;
  work.top_k = static_cast<int>(layer.top_k);
  work.slots = work.top_k + block.parts;
  work.units_of_slot = static_cast<int>((layer.intermediate + kUnitElements - 1) / kUnitElements);
  const int of_round = kWarps * kDownVectors / config.rows;
  work.units = (work.slots * work.units_of_slot + of_round - 1) / of_round * of_round;
  work.act_stride = static_cast<int>(layer.act_stride);
  MOE_INTERNAL_CHECK(config.parts == 0 && work.units < kMostDownUnits + of_round,
                     "{} units of down, {} parts", work.units, config.parts);
  const bool aligned =
      in_widest_vectors(layer.intermediate * 2, {layer.down, layer.act, block.shared_down}) &&
      block.shared % kElements == 0 && layer.act_stride % kElements == 0;
  const auto launch = [&](void (*kernel)(DownWork)) {
    launch_overlapping("token_block_down_kernel", kernel,
                       dim3(static_cast<unsigned>(config.down_blocks)), dim3(kThreads),
                       static_cast<std::size_t>(work.units) * sizeof(DownUnit), stream, work);
  };
  const auto of_rows = [&]<int kRows>() {
    launch(aligned ? token_block_down_kernel<kRows, true> : token_block_down_kernel<kRows, false>);
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
