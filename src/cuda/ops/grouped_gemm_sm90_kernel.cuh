// The kernel of grouped_gemm_sm90.cu. Weights lie on the 64-row side of wgmma, tokens on the other,
// whose width is chosen tile by tile in steps of 16.
//
// In each block: a warp that loads, one thread (of the cluster) that hands out work, and two consumer
// warpgroups. The two blocks of a cluster divide their work in one of two ways (Division):
//   pingpong     Both work on the same row tile and on neighbouring blocks of 128 features. Consumers take
//                whole tiles in turn: while one runs its products, the other finishes its tile and stores
//                it. One warp gathers rows ahead of the loads (when they are not gathered yet).
//   cooperative  Both work on the same two blocks of features, each on half of the tile's rows, or, where
//                these are few, each on all rows and two blocks of its own. A consumer has one of the feature
//                blocks. Rows have a ring of their own and come by a warpgroup (from the tokens' order) or a
//                warp (by boxes). A consumer makes outputs of its first features while it multiplies the
//                others'.
//
//   scheduler ──tile──▶ queue[2] ──▶ loader ──weights, rows; half of what is shared──▶ ring
//                          └──────▶ consumers ◀──────────full / empty───────────────────┘
#pragma once

#include "cuda/device/cluster.cuh"
#include "cuda/device/mbarrier.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/device/register_budget.cuh"
#include "cuda/ops/grouped_gemm_sm90_consume.cuh"
#include "cuda/ops/grouped_gemm_sm90_parts.cuh"
#include "cuda/ops/grouped_gemm_sm90_supply.cuh"

namespace moe::cuda {

template <class Config>
__global__ void __cluster_dims__(Config::kCluster, 1, 1) __launch_bounds__(Config::kThreads, 1)
    grouped_gemm_kernel(const __grid_constant__ TokenMaps tokens,
                        const __grid_constant__ OutMaps out_maps,
                        const __grid_constant__ WeightMaps weights,
                        const __grid_constant__ GemmArguments p) {
  extern __shared__ __align__(1024) std::uint8_t raw[];
  const auto shared = Shared<Config>::of(raw);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Config::kWeightSlots; ++s) {
      mbarrier_init(shared.full(s), 1);
      mbarrier_init(shared.empty(s), Config::kCluster);
    }
    if constexpr (Config::kCooperative) {
      for (int s = 0; s < Config::kRowSlots; ++s) {
        mbarrier_init(shared.rows_full(s), max(1, Config::kRowThreads));
        mbarrier_init(shared.rows_empty(s), Config::kConsumersOfTile);
      }
    }
    for (int slot = 0; slot < 2; ++slot) {
      mbarrier_init(shared.queued(slot), 1);
      // In each block: the loader, the consumers, who loads rows.
      mbarrier_init(shared.taken(slot),
                    Config::kCluster * (1 + Config::kConsumersOfTile + Config::kRowReaders));
    }
    mbarrier_init(shared.gathered(), 1);
    mbarrier_init(shared.first_gathered(), Config::kCluster);
    for (int consumer = 0; consumer < 2; ++consumer) {
      mbarrier_init(shared.stored(consumer), 1);
      mbarrier_init(shared.announced(consumer), 1);
    }
    fence_mbarrier_init();
  }
  cluster_barrier();
  // Consumers read what loaders have waited for. Where only rows are new, these are waited for by who loads
  // them; what kernels before that made is complete when this one starts (overlap.cuh).
  if (threadIdx.x < Config::kProducerThreads) {
    if (!p.rows_of_previous) wait_for_previous_kernel();
    allow_next_kernel();
  }

  if (threadIdx.x < 128) {
    release_registers<Config::kLoaderRegisters>();
    const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
    if (warp == 0) {
      if constexpr (Config::kCooperative) {
        load_weights(shared, weights, p);
      } else {
        load(shared, tokens, weights, p);
      }
    } else if (threadIdx.x == 32 && cluster_rank() == 0) {
      schedule(shared, p);
    } else if (Config::kCooperative && Config::kRowThreads == 0 && warp == 2) {
      load_boxes(shared, tokens, p);
    } else if (Config::kGatherPieces > 0 && warp == 2 && p.source != nullptr) {
      gather(shared, p);
    } else if (Config::kAnnounces && threadIdx.x == 96 && p.finished != nullptr) {
      announce(shared, p);
    }
  } else if (threadIdx.x < Config::kProducerThreads) {
    if constexpr (Config::kRowThreads > 0) {
      release_registers<Config::kRowRegisters>();
      load_rows(shared, p);
    }
  } else {
    claim_registers<Config::kConsumerRegisters>();
    consume(shared, out_maps, p);
  }
  __syncwarp();  // a lane that waits below would stop those of its warp that still work
  // So that the kernel before is complete when this one is.
  if (p.rows_of_previous) wait_for_previous_kernel();
  // Nobody leaves while a neighbour may still write to its shared memory.
  cluster_barrier();
}

}  // namespace moe::cuda
