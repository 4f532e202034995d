#include "cuda/ops/stream_experts.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/overlap.cuh"
#include "cuda/device/swiglu.cuh"
#include "cuda/device/weight_stream.cuh"
#include "cuda/launch.h"

namespace moe::cuda {
namespace {

/// What the kernels know of a call.
struct Work {
  const Bf16* low;   // gate [E,I,H], or down [E,H,I]
  const Bf16* high;  // up [E,I,H], or down
  const Bf16* from;  // x [T,H], or act [T·K,stride]
  Bf16* to;          // act, rows [T·K,H], or y [T,H]
  const ActiveExpert* active;
  const std::int32_t* slots;
  const float* topk_weights;
  int tokens, top_k, experts, most_active;
  int features;  // rows of an expert's matrix
  int depth;     // their length
  int from_stride, to_stride;
  int row_groups, feature_blocks;
};

/// Three chunks of 256 bytes of each of 16 rows in flight, 12 KiB a warp.
template <bool kAligned>
using ExpertStream = WeightStream<128, 3, kAligned>;
/// Blocks of a multiprocessor: their rings fill its shared memory.
constexpr int kBlocks = 2;

/// The first product: a fragment's low rows are eight gate features, its high rows the same of up, so
/// that a lane ends up with both of a feature.
struct GateUp {
  static constexpr int kFeatures = 8;
  static constexpr bool kWeightsFirst = false;  // which experts is what the kernel before finds out
  __device__ static WeightRows rows(const Work& work, int expert, int feature) {
    const std::int64_t at =
        (static_cast<std::int64_t>(expert) * work.features + feature) * work.depth;
    const int count = min(work.features - feature, 8);
    return {work.low + at, work.high + at, count, count, work.depth};
  }
  __device__ static int row(const Work& work, int slot) { return slot / work.top_k; }
  __device__ static void store(const Work& work, int slot, int feature, float low, float high) {
    if (feature >= work.features) return;
    work.to[static_cast<std::int64_t>(slot) * work.to_stride + feature] =
        from_float<Bf16>(silu<Bf16>(low) * high);
  }
};

/// The second: sixteen features.
struct Down {
  static constexpr int kFeatures = 16;
  static constexpr bool kWeightsFirst = true;
  __device__ static WeightRows rows(const Work& work, int expert, int feature) {
    const Bf16* const low =
        work.low + (static_cast<std::int64_t>(expert) * work.features + feature) * work.depth;
    const int count = work.features - feature;
    return {low, low + static_cast<std::int64_t>(8) * work.depth, min(count, 8), min(count - 8, 8),
            work.depth};
  }
  __device__ static int row(const Work&, int slot) { return slot; }
  __device__ static void store(const Work& work, int slot, int feature, float low, float high) {
    Bf16* const row = work.to + static_cast<std::int64_t>(slot) * work.to_stride;
    if (feature < work.features) row[feature] = from_float<Bf16>(low);
    if (feature + 8 < work.features) row[feature + 8] = from_float<Bf16>(high);
  }
};

/// Where this lane's tokens from the expert's `first_token` on start. Tokens behind the last repeat it.
template <class Product, int kTiles>
__device__ __forceinline__ void find_rows(const Work& work, const ActiveExpert& expert,
                                          int first_token, unsigned (&rows)[kTiles]) {
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
  bool exists;  // whether there are such features
};

/// Tokens from `first` on, kTiles tiles of them: products, sums over the parts, what follows. All warps of
/// the block come here together.
template <class Product, int kTiles, class Stream>
__device__ __forceinline__ void multiply_tiles(const Work& work, const ActiveExpert& expert,
                                               int first, const WarpShare<Product>& share,
                                               Stream& stream, std::byte* shared) {
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
      Product::store(work, work.slots[expert.first + token], share.first_feature + share.lane / 4,
                     sums[tile][half], sums[tile][2 + half]);
    }
  }
}

/// One block: an active expert and a range of its features. kTiles at once, where the expert has more
/// than one.
template <class Product, int kTiles, bool kAligned>
__global__ void __launch_bounds__(kStreamWarps* kWarpSize, kBlocks)
    stream_product_kernel(Work work) {
  using Stream = ExpertStream<kAligned>;
  extern __shared__ __align__(128) std::byte shared[];  // a ring a warp; then sums of the parts
  if constexpr (!Product::kWeightsFirst) wait_for_previous_kernel();
  const int block = static_cast<int>(blockIdx.x);
  const ActiveExpert expert = work.active[block / work.feature_blocks];
  if (expert.tokens == 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int group = warp % work.row_groups;
  const int first_feature =
      (block % work.feature_blocks * work.row_groups + group) * Product::kFeatures;
  const WarpShare<Product> share{.warp = warp,
                                 .lane = static_cast<int>(threadIdx.x) % kWarpSize,
                                 .part = warp / work.row_groups,
                                 .parts = kStreamWarps / work.row_groups,
                                 .first_feature = first_feature,
                                 .exists = first_feature < work.features};
  ChunkRange range = ChunkRange::of_part(work.depth, Stream::kChunk, share.part, share.parts);
  if (!share.exists) range.count = 0;

  Stream stream(shared + warp * Stream::kRingBytes);
  const WeightRows weights = Product::rows(work, expert.expert, first_feature);
  stream.start(weights, range);
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
std::int64_t blocks_of(std::int64_t count, std::int64_t block) {
  return (count + block - 1) / block;
}

Work common(const StreamExperts& experts) {
  Work work{};
  work.active = experts.routing.active;
  work.slots = experts.routing.slots;
  work.topk_weights = experts.routing.topk_weights;
  work.tokens = static_cast<int>(experts.tokens);
  work.top_k = static_cast<int>(experts.top_k);
  work.experts = static_cast<int>(experts.experts);
  work.most_active = static_cast<int>(std::min(experts.tokens * experts.top_k, experts.experts));
  return work;
}
Work down_work(const StreamExperts& experts, void* to) {
  Work work = common(experts);
  work.low = work.high = static_cast<const Bf16*>(experts.down);
  work.from = static_cast<const Bf16*>(experts.act);
  work.to = static_cast<Bf16*>(to);
  work.features = static_cast<int>(experts.hidden);
  work.depth = static_cast<int>(experts.intermediate);
  work.from_stride = static_cast<int>(experts.act_stride);
  work.to_stride = static_cast<int>(experts.hidden);
  return work;
}

bool act_is_aligned(const StreamExperts& experts) {
  return in_widest_vectors(experts.intermediate * 2, {experts.down, experts.act}) &&
         experts.act_stride % 8 == 0;
}

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

template <class Product>
void launch_product(const char* name, Work work, int row_groups, int token_tiles, bool aligned,
                    cudaStream_t stream) {
  work.row_groups = row_groups;
  work.feature_blocks =
      static_cast<int>(blocks_of(work.features, std::int64_t{row_groups} * Product::kFeatures));
  const std::int64_t blocks = static_cast<std::int64_t>(work.most_active) * work.feature_blocks;
  MOE_INTERNAL_CHECK(blocks <= INT32_MAX, "{} blocks exceed the grid", blocks);
  with_tiles(token_tiles, aligned, [&]<int kTiles, bool kAligned>() {
    const auto kernel = stream_product_kernel<Product, kTiles, kAligned>;
    constexpr unsigned kShared = kStreamWarps * ExpertStream<kAligned>::kRingBytes;
    MOE_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int{kShared}));
    launch_overlapping(name, kernel, dim3(static_cast<unsigned>(blocks)),
                       dim3(kStreamWarps * kWarpSize), kShared, stream, work);
  });
}

}  // namespace

StreamConfig choose_stream_config(const Shape& shape, int multiprocessors) {
  constexpr double kBlocksWanted = 1.3;  // of a multiprocessor
  StreamConfig config;
  const auto experts = static_cast<double>(shape.experts);
  const double share = static_cast<double>(shape.top_k) / experts;
  const auto tokens = static_cast<double>(shape.tokens);
  config.token_tiles = shape.tokens <= kStreamTokens ? 1 : 2;
  const double active = experts * (1 - std::pow(1 - share, tokens));
  const auto row_groups = [&](std::int64_t features, int of_warp) {
    int groups = kStreamWarps;
    const auto blocks = [&] {
      return active * static_cast<double>(blocks_of(features, std::int64_t{groups} * of_warp));
    };
    while (groups > 1 && blocks() < kBlocksWanted * multiprocessors) groups /= 2;
    return groups;
  };
  config.gate_up_row_groups = row_groups(shape.intermediate, GateUp::kFeatures);
  config.down_row_groups = row_groups(shape.hidden, Down::kFeatures);
  return config;
}

std::string to_string(const StreamConfig& config) {
  return fmt::format(
      "{} tokens at once; gate|up in blocks of {} features; down in blocks of {}, combined after",
      config.token_tiles * kStreamTokens, GateUp::kFeatures * config.gate_up_row_groups,
      Down::kFeatures * config.down_row_groups);
}

void stream_gate_up(const StreamExperts& experts, const void* x, const StreamConfig& config,
                    cudaStream_t stream) {
  Work work = common(experts);
  work.low = static_cast<const Bf16*>(experts.gate);
  work.high = static_cast<const Bf16*>(experts.up);
  work.from = static_cast<const Bf16*>(x);
  work.to = static_cast<Bf16*>(experts.act);
  work.features = static_cast<int>(experts.intermediate);
  work.depth = static_cast<int>(experts.hidden);
  work.from_stride = static_cast<int>(experts.hidden);
  work.to_stride = static_cast<int>(experts.act_stride);
  launch_product<GateUp>("stream_gate_up", work, config.gate_up_row_groups, config.token_tiles,
                         in_widest_vectors(experts.hidden * 2, {experts.gate, experts.up, x}),
                         stream);
}

void stream_down(const StreamExperts& experts, void* rows, const StreamConfig& config,
                 cudaStream_t stream) {
  launch_product<Down>("stream_down", down_work(experts, rows), config.down_row_groups,
                       config.token_tiles, act_is_aligned(experts), stream);
}

}  // namespace moe::cuda
