// The definition behind grouped_gemm_sm90_kernels.h, for the files that compile kernels.
#pragma once

#include "cuda/ops/grouped_gemm_sm90_kernel.cuh"
#include "cuda/ops/grouped_gemm_sm90_kernels.h"

namespace moe::cuda {

template <class Config>
GroupedGemmKernel kernel_of_config() {
  return {.function = grouped_gemm_kernel<Config>,
          .threads = Config::kThreads,
          .shared_bytes = Config::kSharedBytes,
          .cluster = Config::kCluster,
          .consumers_of_tile = Config::kConsumersOfTile};
}

template <GemmEpilogue kEpilogue>
GroupedGemmKernel grouped_gemm_kernel_for(int largest_tile, [[maybe_unused]] bool gathers) {
  constexpr Division kPingpong = Division::kPingpong;
  // Pieces of rows that are gathered take the memory that stages leave.
  constexpr int kPieces = activates(kEpilogue) ? 5 : 0;
  if (largest_tile == kGatheringTile) {
    return kernel_of_config<GemmConfig<kEpilogue, kPingpong, kGatheringTile, 5, 5, kPieces>>();
  }
  if constexpr (activates(kEpilogue)) {
    if (largest_tile == kDeepTile && gathers) {
      return kernel_of_config<GemmConfig<kEpilogue, kPingpong, kDeepTile, 5, 5, 4 * kPieces>>();
    }
  }
  if (largest_tile == kDeepTile) {
    return kernel_of_config<GemmConfig<kEpilogue, kPingpong, kDeepTile, 6, 6, 0>>();
  }
  return kernel_of_config<
      GemmConfig<kEpilogue, Division::kCooperative, kCooperativeTile / 2, 8, 4, 0>>();
}

}  // namespace moe::cuda
