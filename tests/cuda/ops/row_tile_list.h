// A list of row tiles for tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cuda/device_test.h"
#include "cuda/ops/row_tiles.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {

inline std::vector<std::int32_t> offsets_of(const std::vector<int>& counts) {
  std::vector<std::int32_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

/// On the device, for rows of experts with so many each.
struct RowTileList {
  /// `to`: dst_row of a permutation, top_k rows a token; empty where rows are in order already.
  RowTileList(CudaDevice& device, const std::vector<int>& counts, int largest_tile,
              const std::vector<std::int32_t>& to = {}, std::int64_t top_k = 1)
      : offsets(device, offsets_of(counts)),
        tiles(device,
              std::max<std::int64_t>(
                  1, most_row_tiles(std::accumulate(counts.begin(), counts.end(), 0),
                                    static_cast<std::int64_t>(counts.size()), largest_tile))),
        counters(device, RowTiles::kCounts + RowTiles::kTickets),
        ready(device, static_cast<std::int64_t>(tiles.download().size())),
        finished(device, static_cast<std::int64_t>(tiles.download().size())),
        dst_row(device, to),
        row_to_token(device, static_cast<std::int64_t>(to.size())) {
    build_row_tiles({.expert_offsets = offsets.data(),
                     .experts = static_cast<std::int64_t>(counts.size()),
                     .dst_row = to.empty() ? nullptr : dst_row.data(),
                     .routed = static_cast<std::int64_t>(to.size()),
                     .top_k = top_k,
                     .largest_tile = largest_tile},
                    views(), device.stream());
  }
  [[nodiscard]] RowTiles views() const {
    return {tiles.data(), counters.data(),     counters.data() + RowTiles::kCounts,
            ready.data(), row_to_token.data(), finished.data()};
  }
  DeviceArray<std::int32_t> offsets;
  DeviceArray<RowTile> tiles;
  DeviceArray<std::int32_t> counters;
  DeviceArray<std::int32_t> ready;
  DeviceArray<std::int32_t> finished;
  DeviceArray<std::int32_t> dst_row;
  DeviceArray<std::int32_t> row_to_token;
};

}  // namespace moe::cuda
