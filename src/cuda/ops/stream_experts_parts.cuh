// The products of level 09's experts: the kernel, what it multiplies for a plain layer and for any block,
// and its launcher. The two are compiled apart: stream_experts.cu and stream_experts_block.cu.
#pragma once

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/device/stream_block.h"
#include "cuda/device/swiglu.cuh"
#include "cuda/device/weight_stream.cuh"
#include "cuda/launch.h"
#include "cuda/ops/stream_experts.h"

namespace moe::cuda {

/// What the kernels know of a call.
struct StreamWork {
  const Bf16* low;   // gate [E,I,H], or down [E,H,I]
  const Bf16* high;  // up [E,I,H], or down
  const Bf16* from;  // x [T,H], or act [T·S,stride]
  Bf16* to;          // act, or rows [T·S,H]
  const ActiveExpert* active;
  const std::int32_t* slots;
  const float* input_weights;  // [T,S]; null: weights are the output's
  int features;                // rows of an expert's matrix
  int depth;                   // their length
  int from_stride, to_stride;
  int row_groups, feature_blocks;
  int token_slots;  // S: K and the parts of the shared expert
  int experts, most_active;
};
/// NOTE: apart, because a plain layer's loop of two tiles spills registers as soon as its kernel's
/// parameters are that large.
struct StreamBlockWork : StreamWork {
  StreamBlock block;
};

/// A product to be launched; feature_blocks is the launcher's business.
struct StreamProductCall {
  const char* name;
  StreamBlockWork work;
  int token_tiles;
  bool aligned;
  cudaStream_t stream;
};
void stream_block_gate_up(const StreamProductCall& call);
void stream_block_down(const StreamProductCall& call);

namespace {

/// Three chunks of 256 bytes of each of 16 rows in flight, 12 KiB a warp.
template <bool kAligned>
using ExpertStream = WeightStream<128, 3, kAligned>;
/// Blocks of a multiprocessor: their rings fill its shared memory.
constexpr int kBlocks = 2;

/// An expert's matrices from its `feature` on. A lane has features lane / 4 of `low` and of `high`.
struct ExpertRows {
  WeightRows weights;
  const float* low_bias = nullptr;  // of those features; null: none
  const float* high_bias = nullptr;
};

/// The first product of a plain layer: a fragment's low rows are eight gate features, its high rows the
/// same of up, so that a lane ends up with both of a feature.
struct GateUp {
  using Work = StreamWork;
  static constexpr bool kBlock = false;
  static constexpr bool kWeightsFirst = false;  // which experts is what the kernel before finds out
  __device__ static int width(const Work& work, int) { return work.features; }
  __device__ static int depth(const Work& work, int) { return work.depth; }
  __device__ static int group_features(const Work&) { return 8; }
  __device__ static ExpertRows rows(const Work& work, int expert, int feature) {
    const std::int64_t at =
        (static_cast<std::int64_t>(expert) * work.features + feature) * work.depth;
    const int count = min(work.features - feature, 8);
    return {{work.low + at, work.high + at, count, count, work.depth, work.depth}};
  }
  __device__ static int row(const Work& work, int slot) { return slot / work.token_slots; }
  __device__ static void store(const Work& work, int slot, int feature, int, float low,
                               float high) {
    if (feature >= work.features) return;
    work.to[static_cast<std::int64_t>(slot) * work.to_stride + feature] =
        from_float<Bf16>(silu<Bf16>(low) * high);
  }
};

/// The second: sixteen features.
struct Down {
  using Work = StreamWork;
  static constexpr bool kBlock = false;
  static constexpr bool kWeightsFirst = true;
  __device__ static int width(const Work& work, int) { return work.features; }
  __device__ static int depth(const Work& work, int) { return work.depth; }
  __device__ static int group_features(const Work&) { return 16; }
  __device__ static ExpertRows rows(const Work& work, int expert, int feature) {
    const Bf16* const low =
        work.low + (static_cast<std::int64_t>(expert) * work.features + feature) * work.depth;
    const int count = work.features - feature;
    return {{low, low + static_cast<std::int64_t>(8) * work.depth, min(count, 8), min(count - 8, 8),
             work.depth, work.depth}};
  }
  __device__ static int row(const Work&, int slot) { return slot; }
  __device__ static void store(const Work& work, int slot, int feature, int, float low,
                               float high) {
    Bf16* const row = work.to + static_cast<std::int64_t>(slot) * work.to_stride;
    if (feature < work.features) row[feature] = from_float<Bf16>(low);
    if (feature + 8 < work.features) row[feature + 8] = from_float<Bf16>(high);
  }
};

/// Where the biases of a lane's two features are, if they exist.
__device__ __forceinline__ const float* bias_at(const float* biases, const StreamWork& work,
                                                int expert, int feature) {
  const bool exists = biases != nullptr && expert < work.experts && feature < work.features;
  return exists ? biases + static_cast<std::int64_t>(expert) * work.features + feature : nullptr;
}

/// The first product of any block. Without a gate, the low and the high rows are sixteen features of up.
struct BlockGateUp {
  using Work = StreamBlockWork;
  static constexpr bool kBlock = true;
  static constexpr bool kWeightsFirst = false;
  /// Features of an expert: a shared one's last part is narrower.
  __device__ static int width(const Work& work, int expert) {
    if (expert < work.experts) return work.features;
    return min(work.features, work.block.shared - (expert - work.experts) * work.features);
  }
  __device__ static int depth(const Work& work, int) { return work.depth; }
  __device__ static int group_features(const Work& work) { return work.block.gated ? 8 : 16; }
  __device__ static ExpertRows rows(const Work& work, int expert, int feature) {
    const bool is_shared = expert >= work.experts;
    const std::int64_t at =
        (static_cast<std::int64_t>(is_shared ? expert - work.experts : expert) * work.features +
         feature) *
        work.depth;
    const Bf16* const up =
        (is_shared ? static_cast<const Bf16*>(work.block.shared_up) : work.high) + at;
    const int count = width(work, expert) - feature;
    const int of_lane = feature + static_cast<int>(threadIdx.x) % kWarpSize / 4;
    if (work.block.gated) {
      const Bf16* const gate =
          (is_shared ? static_cast<const Bf16*>(work.block.shared_gate) : work.low) + at;
      return {{gate, up, min(count, 8), min(count, 8), work.depth, work.depth},
              bias_at(work.block.gate_bias, work, expert, of_lane),
              bias_at(work.block.up_bias, work, expert, of_lane)};
    }
    return {{up, up + static_cast<std::int64_t>(8) * work.depth, min(count, 8), min(count - 8, 8),
             work.depth, work.depth},
            bias_at(work.block.up_bias, work, expert, of_lane),
            bias_at(work.block.up_bias, work, expert, of_lane + 8)};
  }
  __device__ static int row(const Work& work, int slot) { return slot / work.token_slots; }
  __device__ static void store(const Work& work, int slot, int feature, int width, float low,
                               float high) {
    Bf16* const row = work.to + static_cast<std::int64_t>(slot) * work.to_stride;
    if (work.block.gated) {
      if (feature < width) row[feature] = from_float<Bf16>(gated(work.block.activation, low, high));
      return;
    }
    if (feature < width) row[feature] = from_float<Bf16>(relu2(low));
    if (feature + 8 < width) row[feature + 8] = from_float<Bf16>(relu2(high));
  }
};

/// The second of any block.
struct BlockDown {
  using Work = StreamBlockWork;
  static constexpr bool kBlock = true;
  static constexpr bool kWeightsFirst = true;
  __device__ static int width(const Work& work, int) { return work.features; }
  /// Of an expert's rows: a shared one's last part is shorter.
  __device__ static int depth(const Work& work, int expert) {
    if (expert < work.experts) return work.depth;
    return min(work.depth, work.block.shared - (expert - work.experts) * work.depth);
  }
  __device__ static int group_features(const Work&) { return 16; }
  __device__ static ExpertRows rows(const Work& work, int expert, int feature) {
    const int stride = expert < work.experts ? work.depth : work.block.shared;
    const Bf16* const low =
        expert < work.experts
            ? work.low + (static_cast<std::int64_t>(expert) * work.features + feature) * work.depth
            : static_cast<const Bf16*>(work.block.shared_down) +
                  static_cast<std::int64_t>(feature) * stride +
                  static_cast<std::int64_t>(expert - work.experts) * work.depth;
    const int count = work.features - feature;
    const int of_lane = feature + static_cast<int>(threadIdx.x) % kWarpSize / 4;
    return {{low, low + static_cast<std::int64_t>(8) * stride, min(count, 8), min(count - 8, 8),
             depth(work, expert), stride},
            bias_at(work.block.down_bias, work, expert, of_lane),
            bias_at(work.block.down_bias, work, expert, of_lane + 8)};
  }
  __device__ static int row(const Work& work, int slot) { return Down::row(work, slot); }
  __device__ static void store(const Work& work, int slot, int feature, int width, float low,
                               float high) {
    Down::store(work, slot, feature, width, low, high);
  }
};

/// Where this lane's tokens from the expert's `first_token` on start. Tokens behind the last repeat it.
template <class Product, int kTiles>
__device__ __forceinline__ void find_rows(const typename Product::Work& work,
                                          const ActiveExpert& expert, int first_token,
                                          unsigned (&rows)[kTiles]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int token = min(first_token + tile * kStreamTokens + lane / 4, expert.tokens - 1);
    const int row = Product::row(work, work.slots[expert.first + token]);
    rows[tile] = static_cast<unsigned>(row) * static_cast<unsigned>(work.from_stride);
  }
}

/// What a warp does of a block's work: sixteen rows of weights and its chunks of their length.
template <class Product>
struct WarpShare {
  int warp, lane;
  int part, parts;
  int first_feature;
  int width;       // features of the expert
  bool exists;     // whether there are such features
  float low_bias;  // of this lane's features
  float high_bias;
};

/// Tokens from `first` on, kTiles tiles of them: products, sums over the parts, what follows. All warps of
/// the block come here together.
template <class Product, int kTiles, class Stream>
__device__ __forceinline__ void multiply_tiles(const typename Product::Work& work,
                                               const ActiveExpert& expert, int first,
                                               const WarpShare<Product>& share, Stream& stream,
                                               std::byte* shared) {
  using Partial = float4[kTiles][kWarpSize];
  static_assert(sizeof(Partial) <= Stream::kRingBytes, "sums fit where the warp's weights were");
  const auto partial = [&](int of_warp) -> Partial& {
    return *reinterpret_cast<Partial*>(shared + of_warp * Stream::kRingBytes);
  };
  unsigned rows[kTiles];
  find_rows<Product>(work, expert, first, rows);
  float sums[kTiles][4] = {};
  stream.multiply(work.from, rows, sums);
  if (share.parts > 1) {
    if (share.part > 0) {
      __syncwarp();  // this warp's ring is empty: all its chunks are multiplied
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        partial(share.warp)[tile][share.lane] =
            make_float4(sums[tile][0], sums[tile][1], sums[tile][2], sums[tile][3]);
      }
    }
    __syncthreads();
    for (int other = share.warp + work.row_groups; share.part == 0 && other < kStreamWarps;
         other += work.row_groups) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float4 four = partial(other)[tile][share.lane];
        sums[tile][0] += four.x;
        sums[tile][1] += four.y;
        sums[tile][2] += four.z;
        sums[tile][3] += four.w;
      }
    }
    __syncthreads();
  }
  if (share.part > 0 || !share.exists) return;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = first + tile * kStreamTokens + share.lane % 4 * 2 + half;
      if (token >= expert.tokens) continue;
      const int slot = work.slots[expert.first + token];
      float low = sums[tile][half];
      float high = sums[tile][2 + half];
      if constexpr (Product::kBlock) {
        const float weight = Product::kWeightsFirst || work.input_weights == nullptr
                                 ? 1.0F
                                 : work.input_weights[slot];
        low = fmaf(weight, low, share.low_bias);
        high = fmaf(weight, high, share.high_bias);
      }
      Product::store(work, slot, share.first_feature + share.lane / 4, share.width, low, high);
    }
  }
}

/// One block: an active expert and a range of its features. kTiles at once, where the expert has more
/// than one.
template <class Product, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kStreamWarps* kWarpSize, kBlocks)
    stream_product_kernel(typename Product::Work work) {
  using Stream = ExpertStream<kAligned>;
  extern __shared__ __align__(128) std::byte shared[];  // a ring a warp; then sums of the parts
  if constexpr (!Product::kWeightsFirst) wait_for_previous_kernel();
  const int block = static_cast<int>(blockIdx.x);
  const ActiveExpert expert = work.active[block / work.feature_blocks];
  if (expert.tokens == 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int group = warp % work.row_groups;
  const int first_feature =
      (block % work.feature_blocks * work.row_groups + group) * Product::group_features(work);
  WarpShare<Product> share{.warp = warp,
                           .lane = static_cast<int>(threadIdx.x) % kWarpSize,
                           .part = warp / work.row_groups,
                           .parts = kStreamWarps / work.row_groups,
                           .first_feature = first_feature,
                           .width = Product::width(work, expert.expert),
                           .exists = true,
                           .low_bias = 0,
                           .high_bias = 0};
  share.exists = first_feature < share.width;
  ChunkRange range = ChunkRange::of_part(Product::depth(work, expert.expert), Stream::kChunk,
                                         share.part, share.parts);
  if (!share.exists) range.count = 0;

  Stream stream(shared + warp * Stream::kRingBytes);
  const ExpertRows from = Product::rows(work, expert.expert, first_feature);
  const WeightRows weights = from.weights;
  stream.start(weights, range);
  if constexpr (Product::kBlock) {
    // Asked for now and needed at the end.
    if (from.low_bias != nullptr) share.low_bias = __ldg(from.low_bias);
    if (from.high_bias != nullptr) share.high_bias = __ldg(from.high_bias);
  }
  if constexpr (Product::kWeightsFirst) wait_for_previous_kernel();
  allow_next_kernel();
  for (int first = 0; first < expert.tokens;) {
    if (first > 0) stream.start(weights, range);
    const int tiles = (expert.tokens - first + kStreamTokens - 1) / kStreamTokens;
    if (kTiles == 1 || tiles == 1) {
      multiply_tiles<Product, 1>(work, expert, first, share, stream, shared);
      first += kStreamTokens;
    } else {
      multiply_tiles<Product, kTiles>(work, expert, first, share, stream, shared);
      first += kTiles * kStreamTokens;
    }
  }
}

// --- host ----------------------------------------------------------------------------------------
/// body.operator()<kTiles, kAligned>(). Odd sizes have one way.
template <class Body>
void with_tiles(int token_tiles, bool aligned, Body&& body) {
  MOE_INTERNAL_CHECK(token_tiles == 1 || token_tiles == 2, "no kernel for {} tiles of tokens",
                     token_tiles);
  if (!aligned) {
    body.template operator()<1, false>();
  } else if (token_tiles == 1) {
    body.template operator()<1, true>();
  } else {
    body.template operator()<2, true>();
  }
}

/// `group_features`: of a warp, as the product says on the device.
template <class Product>
void launch_product(const StreamProductCall& call, int group_features) {
  typename Product::Work work = call.work;
  const int of_block = work.row_groups * group_features;
  work.feature_blocks = (work.features + of_block - 1) / of_block;
  const std::int64_t blocks = static_cast<std::int64_t>(work.most_active) * work.feature_blocks;
  MOE_INTERNAL_CHECK(blocks <= INT32_MAX, "{} blocks exceed the grid", blocks);
  with_tiles(call.token_tiles, call.aligned, [&]<int kTiles, bool kAligned>() {
    const auto kernel = stream_product_kernel<Product, kTiles, kAligned>;
    constexpr unsigned kShared = kStreamWarps * ExpertStream<kAligned>::kRingBytes;
    MOE_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int{kShared}));
    launch_overlapping(call.name, kernel, dim3(static_cast<unsigned>(blocks)),
                       dim3(kStreamWarps * kWarpSize), kShared, call.stream, work);
  });
}

}  // namespace

}  // namespace moe::cuda
