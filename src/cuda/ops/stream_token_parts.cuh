// What the kernels of level 09 for one token share: those of a plain layer (stream_token.cu) and those of
// any block (stream_token_block.cu).
#pragma once

#include <cstdint>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device/overlap.cuh"
#include "cuda/device/weight_stream.cuh"
#include "cuda/launch.h"
#include "cuda/ops/stream_token.h"

namespace moe::cuda {

/// The products of stream_token.h where the layer is not plain.
void token_block_gate_up(const TokenLayer& layer, const void* x, const TokenConfig& config,
                         cudaStream_t stream);
void token_block_down(const TokenLayer& layer, void* y, const TokenConfig& config,
                      cudaStream_t stream);

/// Of a block that is not plain, warps take units of a row of down in turn: a vector a lane.
inline constexpr std::int64_t kUnitElements = 256;
inline constexpr std::int64_t kMostDownUnits = 512;
/// Of a warp, for which two rows are in its registers at once: with eight routed experts of 2048 and a
/// shared one it has nine.
inline constexpr std::int64_t kMostUnitsOfTwoRows = 9;

namespace {

constexpr int kWarps = 8;  // of a block
constexpr int kThreads = kWarps * kWarpSize;
/// Blocks of a multiprocessor, for which a thread's registers are cut: most of them hold weights on their
/// way. NOTE: nothing is asked for ahead of what a warp multiplies next. Waiting for a token from L1 or
/// shared memory is then waiting for weights asked for before it; other warps fill the time.
constexpr int kGateUpBlocks = 4;
constexpr int kDownBlocks = 2;

constexpr int kElements = 8;  // of 16 bytes
/// 16-byte vectors that a lane asks for at once: of a row of gate and as many of up, and of all rows of
/// down together.
constexpr int kGateUpVectors = 4;
constexpr int kDownVectors = 16;

/// PTX ISA, ld.global.nc.L1::no_allocate: 16 bytes that are read once.
__device__ __forceinline__ uint4 load_once(const void* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

/// Eight elements of a row of `length` from `at` on; zeros behind its end.
template <bool kAligned>
__device__ __forceinline__ uint4 load_weights(const Bf16* row, int at, int length) {
  if constexpr (kAligned) {
    return at < length ? load_once(row + at) : make_uint4(0, 0, 0, 0);
  } else {
    return load_elements(row + at, length - at);
  }
}
template <bool kAligned>
__device__ __forceinline__ uint4 load_token(const Bf16* row, int at, int length) {
  if constexpr (kAligned) {
    return at < length ? load_through_l1(row + at) : make_uint4(0, 0, 0, 0);
  } else {
    return load_elements(row + at, length - at);
  }
}

/// Adds the products of eight elements, the even ones' and the odd ones' apart: half as long a chain.
__device__ __forceinline__ void add_products(const uint4& a, const uint4& b, float (&sums)[2]) {
  const unsigned a_words[4] = {a.x, a.y, a.z, a.w};
  const unsigned b_words[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums[0] = fmaf(__uint_as_float(a_words[i] << 16), __uint_as_float(b_words[i] << 16), sums[0]);
    sums[1] = fmaf(__uint_as_float(a_words[i] & 0xffff0000U),
                   __uint_as_float(b_words[i] & 0xffff0000U), sums[1]);
  }
}

/// The token's experts and their weights, in a block's shared memory. Expert -1: the slot is not used.
struct TokenChoices {
  std::int32_t experts[kMostTokenSlots];
  float weights[kMostTokenSlots];
};

/// PTX ISA, st.relaxed and ld.relaxed: a word is written and read as a whole.
__device__ __forceinline__ void store_word(std::uint64_t* to, std::uint64_t word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
__device__ __forceinline__ std::uint64_t load_word(const std::uint64_t* from) {
  std::uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}

/// A slot's expert and weight for the kernel behind this one, which may read it at any time: it is one
/// word, and 0 until it is known. By one warp.
__device__ __forceinline__ void publish_choices(const TokenChoices& choices, int lane, int slots,
                                                std::uint64_t* words) {
  for (int slot = lane; slot < slots; slot += kWarpSize) {
    const auto expert = static_cast<std::uint64_t>(choices.experts[slot] + 2);
    store_word(words + slot, expert << 32 | __float_as_uint(choices.weights[slot]));
  }
}
/// What the kernel before publishes, by all threads of a block: at once where it is there, else when that
/// kernel is complete.
__device__ __forceinline__ void await_choices(const std::uint64_t* words, int slots,
                                              TokenChoices& choices) {
  const auto slot = static_cast<int>(threadIdx.x);
  std::uint64_t word = slot < slots ? load_word(words + slot) : 1;
  if (__syncthreads_or(word == 0 ? 1 : 0) != 0) {
    wait_for_previous_kernel();
    if (slot < slots) word = load_word(words + slot);
  }
  if (slot < slots) {
    choices.experts[slot] = static_cast<std::int32_t>(word >> 32) - 2;
    choices.weights[slot] = __uint_as_float(static_cast<unsigned>(word));
  }
  __syncthreads();
}

/// Rows of gate and up that warps take one after the other: a pair each, without a gate of two features.
constexpr std::int64_t gate_up_items(std::int64_t features, bool gated) {
  return gated ? features : (features + 1) / 2;
}

}  // namespace

}  // namespace moe::cuda
