// The compiled kernels of grouped_gemm_sm90.cu, which several files share out so that they compile side
// by side, and so that those of blocks with biases and other activations leave the others' code alone.
#pragma once

#include "cuda/ops/grouped_gemm_sm90_parts.cuh"

namespace moe::cuda {

/// What launching one takes.
struct GroupedGemmKernel {
  void (*function)(TokenMaps, OutMaps, GemmArguments) = nullptr;
  int threads = 0;
  int shared_bytes = 0;
  int cluster = 0;
  int consumers_of_tile = 0;  // of a block
};

/// For tiles of kGatheringTile, kDeepTile or kCooperativeTile; each in the file that compiles it.
template <GemmEpilogue kEpilogue>
GroupedGemmKernel grouped_gemm_kernel_for(int largest_tile);
extern template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kStore>(int);
extern template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kSwiGLU>(int);
extern template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kGated>(int);
extern template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kReLU2>(int);
extern template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kStoreBias>(int);

}  // namespace moe::cuda
