// The compiled kernels of grouped_gemm_sm90.cu, which several files share out so that they compile side
// by side, and so that those of blocks with biases and other activations leave the others' code alone.
#pragma once

#include "cuda/ops/grouped_gemm_sm90_parts.cuh"

namespace moe::cuda {

/// What launching one takes.
struct GroupedGemmKernel {
  void (*function)(TokenMaps, OutMaps, WeightMaps, GemmArguments) = nullptr;
  int threads = 0;
  int shared_bytes = 0;
  int cluster = 0;
  int consumers_of_tile = 0;  // of a block
};

/// For tiles of kGatheringTile, kDeepTile or kCooperativeTile; each in the file that compiles it. `gathers`:
/// GroupedGemmConfig's.
template <GemmEpilogue kEpilogue>
GroupedGemmKernel grouped_gemm_kernel_for(int largest_tile, bool gathers);
extern template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kStore>(int, bool);
extern template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kSwiGLU>(int, bool);
extern template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kGated>(int, bool);
extern template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kReLU2>(int, bool);
extern template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kStoreBias>(int, bool);

}  // namespace moe::cuda
