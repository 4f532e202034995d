// The products of one token of layers that are not plain.
#include <algorithm>

#include "cuda/device/activation.cuh"
#include "cuda/device/mbarrier.cuh"
#include "cuda/device/stream_choose.cuh"
#include "cuda/ops/router.h"
#include "cuda/ops/stream_router.h"
#include "cuda/ops/stream_token_parts.cuh"

namespace moe::cuda {
namespace {

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

// --- gate and up ---------------------------------------------------------------------------------
struct GateUpWork {
  const Bf16* gate;
  const Bf16* up;
  const Bf16* x;
  const float* logits;
  const float* switch_logit;
  std::uint64_t* choices;
  Bf16* act;
  int hidden, intermediate, experts, top_k;
  int early_items;  // of the shared expert alone
  int items;
  int act_stride;
  StreamBlock block;
};

/// One of the features of gate and up that the token takes, numbered through all its slots, those of the
/// shared expert first.
struct Feature {
  std::int64_t row;  // of the routed or of the shared experts' matrices
  int slot;
  int feature;  // of the slot's expert
  bool is_shared;
  bool used;
};
__device__ __forceinline__ Feature feature_at(const GateUpWork& work, const TokenChoices& choices,
                                              int n) {
  const bool is_shared = n < work.block.shared;
  const int of_kind = is_shared ? n : n - work.block.shared;
  const int part = of_kind / work.intermediate;
  const int feature = of_kind - part * work.intermediate;
  if (is_shared) return {n, work.top_k + part, feature, true, true};
  const int expert = part < work.top_k ? choices.experts[part] : -1;
  return {static_cast<std::int64_t>(expert) * work.intermediate + feature, part, feature, false,
          expert >= 0};
}
/// What x is multiplied by.
__device__ __forceinline__ float input_weight(const GateUpWork& work, const TokenChoices& choices,
                                              const Feature& at) {
  if (!work.block.weight_on_input) return 1;
  if (at.is_shared && work.block.shared_switch == nullptr) return 1;  // perhaps not known yet
  return choices.weights[at.slot];
}

/// Item n: a feature's gate and up, or two features of up.
struct Item {
  Feature first, second;
};
__device__ __forceinline__ Item item_at(const GateUpWork& work, const TokenChoices& choices,
                                        int n) {
  const bool gated = work.block.gated;
  const Feature first = feature_at(work, choices, gated ? n : 2 * n);
  return {first, gated ? first : feature_at(work, choices, 2 * n + 1)};
}

/// An item's products and what follows, by a warp.
template <bool kAligned>
__device__ __forceinline__ void multiply_features(const GateUpWork& work,
                                                  const TokenChoices& choices, int n) {
  const StreamBlock& block = work.block;
  float low = 0;
  float high = 0;
  float first_bias = 0;
  float second_bias = 0;
  {
    const auto [first, second] = item_at(work, choices, n);
    if (!first.used && !second.used) return;
    const auto row_of = [&](const Feature& at, const Bf16* routed, const void* shared) {
      // Something is multiplied for a feature that is not used beside one that is; it is not stored.
      return (at.is_shared ? static_cast<const Bf16*>(shared) : routed) +
             (at.used ? at.row : 0) * work.hidden;
    };
    const auto bias_of = [&](const Feature& at, const float* biases) {
      return biases != nullptr && at.used && !at.is_shared ? __ldg(biases + at.row) : 0.0F;
    };
    first_bias = bias_of(first, block.gated ? block.gate_bias : block.up_bias);
    second_bias = bias_of(second, block.up_bias);
    const Bf16* const first_row = block.gated ? row_of(first, work.gate, block.shared_gate)
                                              : row_of(first, work.up, block.shared_up);
    multiply_rows<kAligned>(work.x, work.hidden, first_row,
                            row_of(second, work.up, block.shared_up), low, high);
  }
  if (threadIdx.x % kWarpSize != 0) return;
  // NOTE: found again, for there are no registers to keep it in; kept, it was in local memory, and gate and
  // up took a third longer.
  asm volatile("" : "+r"(n));
  const auto [first, second] = item_at(work, choices, n);
  low = fmaf(input_weight(work, choices, first), low, first_bias);
  high = fmaf(input_weight(work, choices, second), high, second_bias);
  const auto store = [&](const Feature& at, float value) {
    if (at.used) work.act[at.slot * work.act_stride + at.feature] = from_float<Bf16>(value);
  };
  if (block.gated) {
    store(first, gated(block.activation, low, high));
  } else {
    store(first, relu2(low));
    store(second, relu2(high));
  }
}

/// A token's logits into shared memory, by one warp. NOTE: from L2; L1 may have them from before they were
/// complete.
template <int kPerLane>
__device__ __forceinline__ void fetch_logits(const float* row, int lane, int experts, float* to) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = i * kWarpSize + lane;
    if (expert < experts) to[expert] = __ldcg(row + expert);
  }
  __syncwarp();
}

/// Warps: features in turn. A warp of each block chooses; the shared expert's features, a range of them a
/// block, do not wait for that.
/// NOTE: a second warp chooses from whatever logits are there, for the sake of the multiprocessor's
/// instruction cache and the selection bias: the choice would wait for its code, line by line, from memory.
template <StreamRule kRule, int kPerLane, bool kAligned>
__global__ void __launch_bounds__(kThreads, kGateUpBlocks)
    token_block_gate_up_kernel(const __grid_constant__ GateUpWork work) {
  constexpr int kLogits = kRule == StreamRule::kGiven ? 4 : kPerLane * kWarpSize;
  __shared__ alignas(16) float logits[2][kLogits];
  __shared__ Candidates candidates[2];
  __shared__ TokenChoices choices[2];
  __shared__ alignas(8) std::uint64_t chosen;  // a barrier
  __shared__ int early_taken;
  const StreamBlock& block = work.block;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const auto blocks = static_cast<int>(gridDim.x);
  const auto this_block = static_cast<int>(blockIdx.x);
  if (threadIdx.x == 0) {
    mbarrier_init(shared_address(&chosen), kWarpSize);
    early_taken = 0;
  }
  __syncthreads();
  const bool rehearses = kRule != StreamRule::kGiven && warp == 1;
  if (warp == 0) {
    wait_for_previous_kernel();
    allow_next_kernel();
  }
  if (warp == 0 || rehearses) {
    if constexpr (kRule != StreamRule::kGiven) {
      fetch_logits<kPerLane>(work.logits, lane, work.experts, logits[warp]);
    }
    choose_of_token<kRule, kPerLane>(block, logits[warp], 0, work.experts, work.top_k,
                                     candidates[warp],
                                     PlainChoice{choices[warp].experts, choices[warp].weights});
  }
  if (warp == 0) {
    for (int part = lane; part < block.parts; part += kWarpSize) {
      choices[0].experts[work.top_k + part] = work.experts + part;
      choices[0].weights[work.top_k + part] = shared_weight(block, work.switch_logit);
    }
    mbarrier_arrive(shared_address(&chosen));  // every lane for what it wrote itself
    __syncwarp();                              // for publish_choices()
    if (this_block == blocks - 1) {
      publish_choices(choices[0], lane, work.top_k + block.parts, work.choices);
    }
  }

  const int of_block = (work.early_items + blocks - 1) / blocks;
  // The block's next item that needs no choice.
  const auto next_early = [&] {
    const int taken = __shfl_sync(kAllLanes, lane == 0 ? atomicAdd(&early_taken, 1) : 0, 0);
    return taken < of_block ? this_block * of_block + taken : work.early_items;
  };
  // NOTE: one loop for both, so that there is one copy of its code.
  int n = 0;
  for (bool early = true;; n += early ? 0 : blocks * kWarps) {
    if (early) {
      n = next_early();
      if (n >= work.early_items) {
        early = false;
        n = work.early_items + this_block * kWarps + warp;
        mbarrier_wait(shared_address(&chosen), 0);
      }
    }
    if (n >= work.items) break;
    multiply_features<kAligned>(work, choices[0], n);
  }
}

// --- down ----------------------------------------------------------------------------------------
struct DownWork {
  const Bf16* down;
  const Bf16* shared_down;
  const float* bias;
  const Bf16* act;
  const std::uint64_t* choices;
  Bf16* y;
  int hidden, intermediate, shared, top_k, slots;
  int units_of_slot, units;  // the latter with what makes the last round whole
  int act_stride;
  bool weight_on_input;
};

/// A piece of a row of down, the same of all rows: a vector a lane.
struct alignas(16) DownUnit {
  const Bf16* rows;
  int stride;
  int act_at;
  int left;  // elements from here to the row's end; none where the slot is not used
  float weight;
};
__device__ __forceinline__ float output_weight(const DownWork& work, const TokenChoices& choices,
                                               int slot) {
  return work.weight_on_input ? 1.0F : choices.weights[slot];
}
__device__ __forceinline__ DownUnit unit_at(const DownWork& work, const TokenChoices& choices,
                                            int unit) {
  constexpr int kOfUnit = static_cast<int>(kUnitElements);
  const int slot = unit / work.units_of_slot;
  const int at = (unit - slot * work.units_of_slot) * kOfUnit;
  if (slot >= work.slots) return {work.down, 0, 0, 0, 0};
  DownUnit found{nullptr, work.intermediate, slot * work.act_stride + at, 0,
                 output_weight(work, choices, slot)};
  if (slot >= work.top_k) {
    const int first = (slot - work.top_k) * work.intermediate;
    found.rows = work.shared_down + first + at;
    found.stride = work.shared;
    found.left = min(work.intermediate, work.shared - first) - at;
    return found;
  }
  const int expert = choices.experts[slot];
  if (expert < 0) return {work.down, 0, 0, 0, 0};
  found.rows = work.down + static_cast<std::int64_t>(expert) * work.hidden * work.intermediate + at;
  found.left = work.intermediate - at;
  return found;
}

/// A block: kRows features at a time, of all slots; its warps take units in turn and leave sums in shared
/// memory, to be added up in the order of warps.
template <int kRows, int kVectors, bool kAligned>
__global__ void __launch_bounds__(kThreads, kDownBlocks)
    token_block_down_kernel(const __grid_constant__ DownWork work) {
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ TokenChoices choices;
  __shared__ float sums[2][kWarps][kRows];
  auto* const units = reinterpret_cast<DownUnit*>(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  await_choices(work.choices, work.slots, choices);
  for (int unit = thread; unit < work.units; unit += kThreads) {
    units[unit] = unit_at(work, choices, unit);
  }
  __syncthreads();

  uint4 weights[kRows][kVectors];
  float bias = 0;  // of row `lane` and the slot that is this warp's
  const auto bias_of = [&](int row, int slot) {
    const int expert =
        work.bias != nullptr && slot < work.top_k && lane < kRows && row + lane < work.hidden
            ? choices.experts[slot]
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
      if (warp < work.top_k) of_biases = output_weight(work, choices, warp) * bias;
      for (int slot = warp + kWarps; slot < work.top_k; slot += kWarps) {
        of_biases = fmaf(output_weight(work, choices, slot), bias_of(row, slot), of_biases);
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
const Bf16* elements(const void* tensor) {
  return static_cast<const Bf16*>(tensor);
}

}  // namespace

void token_block_gate_up(const TokenLayer& layer, const void* x, const TokenConfig& config,
                         cudaStream_t stream) {
  const StreamBlock& block = layer.block;
  GateUpWork work{};
  work.gate = elements(layer.gate);
  work.up = elements(layer.up);
  work.x = elements(x);
  work.logits = layer.logits;
  work.switch_logit = layer.switch_logit;
  work.choices = layer.choices;
  work.act = static_cast<Bf16*>(layer.act);
  work.hidden = static_cast<int>(layer.hidden);
  work.intermediate = static_cast<int>(layer.intermediate);
  work.experts = static_cast<int>(layer.experts);
  work.top_k = static_cast<int>(layer.top_k);
  work.items =
      static_cast<int>(gate_up_items(layer.top_k * layer.intermediate + block.shared, block.gated));
  const bool early = !block.weight_on_input || block.shared_switch == nullptr;
  work.early_items = early ? block.shared / (block.gated ? 1 : 2) : 0;
  work.act_stride = static_cast<int>(layer.act_stride);
  work.block = block;
  const bool aligned = in_widest_vectors(
      layer.hidden * 2, {layer.gate, layer.up, x, block.shared_gate, block.shared_up});
  const auto launch = [&](void (*kernel)(GateUpWork)) {
    launch_overlapping("token_block_gate_up_kernel", kernel,
                       dim3(static_cast<unsigned>(config.gate_up_blocks)), dim3(kThreads), 0,
                       stream, work);
  };
  const auto of_rule = [&]<StreamRule kRule>() {
    if (!aligned) {  // odd sizes have one way
      launch(token_block_gate_up_kernel<kRule, static_cast<int>(kMaxExperts) / kWarpSize, false>);
    } else if (layer.experts <= 4 * kWarpSize) {
      launch(token_block_gate_up_kernel<kRule, 4, true>);
    } else if (layer.experts <= 8 * kWarpSize) {
      launch(token_block_gate_up_kernel<kRule, 8, true>);
    } else {
      launch(token_block_gate_up_kernel<kRule, static_cast<int>(kMaxExperts) / kWarpSize, true>);
    }
  };
  if (block.given) {
    launch(aligned ? token_block_gate_up_kernel<StreamRule::kGiven, 1, true>
                   : token_block_gate_up_kernel<StreamRule::kGiven, 1, false>);
  } else if (block.plain_rule) {
    of_rule.template operator()<StreamRule::kPlain>();
  } else {
    of_rule.template operator()<StreamRule::kRule>();
  }
}

void token_block_down(const TokenLayer& layer, void* y, const TokenConfig& config,
                      cudaStream_t stream) {
  const StreamBlock& block = layer.block;
  DownWork work{};
  work.down = elements(layer.down);
  work.shared_down = elements(block.shared_down);
  work.bias = block.down_bias;
  work.act = elements(layer.act);
  work.choices = layer.choices;
  work.weight_on_input = block.weight_on_input;
  work.y = static_cast<Bf16*>(y);
  work.hidden = static_cast<int>(layer.hidden);
  work.intermediate = static_cast<int>(layer.intermediate);
  work.shared = block.shared;
  work.top_k = static_cast<int>(layer.top_k);
  work.slots = work.top_k + block.parts;
  work.units_of_slot = static_cast<int>((layer.intermediate + kUnitElements - 1) / kUnitElements);
  const bool aligned =
      in_widest_vectors(layer.intermediate * 2, {layer.down, layer.act, block.shared_down}) &&
      block.shared % kElements == 0 && layer.act_stride % kElements == 0;
  // Two rows of six and of nine units a warp have kernels of their own.
  int of_warp = (work.slots * work.units_of_slot + kWarps - 1) / kWarps;
  if (!aligned || config.rows != 2 || (of_warp != 6 && of_warp != kMostUnitsOfTwoRows)) {
    of_warp = kDownVectors / config.rows;
  }
  const int of_round = kWarps * of_warp;
  work.units = (work.slots * work.units_of_slot + of_round - 1) / of_round * of_round;
  work.act_stride = static_cast<int>(layer.act_stride);
  MOE_INTERNAL_CHECK(config.parts == 0 && work.units < kMostDownUnits + of_round,
                     "{} units of down, {} parts", work.units, config.parts);
  const auto launch = [&](void (*kernel)(DownWork)) {
    launch_overlapping("token_block_down_kernel", kernel,
                       dim3(static_cast<unsigned>(config.down_blocks)), dim3(kThreads),
                       static_cast<std::size_t>(work.units) * sizeof(DownUnit), stream, work);
  };
  const auto of_rows = [&]<int kRows>() {
    constexpr int kVectors = kDownVectors / kRows;
    launch(aligned ? token_block_down_kernel<kRows, kVectors, true>
                   : token_block_down_kernel<kRows, kVectors, false>);
  };
  if (of_warp == 6) {
    launch(token_block_down_kernel<2, 6, true>);
  } else if (of_warp == kMostUnitsOfTwoRows) {
    launch(token_block_down_kernel<2, int{kMostUnitsOfTwoRows}, true>);
  } else if (config.rows == 1) {
    of_rows.template operator()<1>();
  } else if (config.rows == 2) {
    of_rows.template operator()<2>();
  } else {
    MOE_INTERNAL_CHECK(config.rows == 4, "no kernel for {} rows", config.rows);
    of_rows.template operator()<4>();
  }
}

}  // namespace moe::cuda
