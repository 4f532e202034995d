// Which piece of a grouped GEMM a cluster works on next: plain arithmetic, the same on host and device.
//
// A *row tile* is up to 16·kUnits rows of one expert, all of whose products use that expert's weights.
// A *feature pair* is two blocks of 128 output features, one for each block of a cluster, which share
// the rows they read. Work item = row tile x feature pair.
#pragma once

#include <cstdint>

namespace moe::cuda {

/// Rows are dealt out in units of 16, the step in which the product's token side is chosen.
inline constexpr int kRowUnit = 16;

constexpr int divide_up(int value, int divisor) {
  return (value + divisor - 1) / divisor;
}

/// How the rows of one expert are cut: into as few tiles as possible, which differ by one unit at
/// most, so that no tile is much smaller than the rest.
struct RowSplit {
  int rows = 0;
  int tiles = 0;

  constexpr RowSplit(int expert_rows, int largest_tile)
      : rows(expert_rows),
        tiles(divide_up(divide_up(expert_rows, kRowUnit), largest_tile / kRowUnit)) {}

  /// First row of tile i, relative to the expert's; first_row(tiles) ends behind the last unit.
  [[nodiscard]] constexpr int first_row(int i) const {
    const int units = divide_up(rows, kRowUnit);
    const int larger = units % tiles;  // the first `larger` tiles have one unit more
    return (units / tiles * i + (i < larger ? i : larger)) * kRowUnit;
  }
  /// Rows of tile i in whole units; rows behind the expert's last one are computed and not stored.
  [[nodiscard]] constexpr int tile_rows(int i) const { return first_row(i + 1) - first_row(i); }
  [[nodiscard]] constexpr int largest() const { return tiles == 0 ? 0 : tile_rows(0); }
};

/// Whether an expert has so few rows, all in one tile, that reading its weights takes much longer than its
/// products, where others have many more: `total` rows of all `experts`.
constexpr bool is_light(int rows, int largest_tile, std::int64_t total, int experts) {
  return rows <= largest_tile && 2 * static_cast<std::int64_t>(rows) * experts < total;
}

/// Tiles of experts that have several, whose weights come from L2 but for the first time (`several`), and
/// those of experts that have one, whose weights come from memory (`single`), become one list in which either
/// are spread evenly: places of tile i of one of them.
constexpr int place_of_several(int i, int several, int single) {
  return i + static_cast<int>(static_cast<std::int64_t>(i) * single / several);
}
constexpr int place_of_single(int i, int several, int single) {
  return i + static_cast<int>((static_cast<std::int64_t>(i + 1) * several + single - 1) / single);
}

/// Most row tiles that any routing of `routed` rows to `experts` experts can give.
constexpr std::int64_t most_row_tiles(std::int64_t routed, std::int64_t experts, int largest_tile) {
  return routed / largest_tile + (experts < routed ? experts : routed);
}

/// Whether a product of `items` should begin while the one before it ends on other clusters. Those that begin
/// early take an item more; where all have few of them, the last one then ends later than if they had begun
/// together.
constexpr bool begins_early(std::int64_t items, std::int64_t clusters) {
  return items >= 8 * clusters;
}

/// The order of work items. Row tiles are taken in groups of group_rows, whose rows should stay in
/// L2, and inside a group the feature pairs in bands of band_features: a band's weights meet all rows
/// of the group before the next band's are read. Inside a band, features vary fastest.
struct TileOrder {
  int row_tiles = 0;
  int feature_pairs = 0;
  int group_rows = 1;
  int band_features = 1;

  struct Item {
    int row_tile;
    int feature_pair;
  };
  [[nodiscard]] constexpr Item at(int ticket) const {
    const int group = ticket / (group_rows * feature_pairs);
    int rest = ticket - group * group_rows * feature_pairs;
    const int first_row_tile = group * group_rows;
    const int rows = min_of(group_rows, row_tiles - first_row_tile);
    const int band = rest / (rows * band_features);
    rest -= band * rows * band_features;
    const int width = min_of(band_features, feature_pairs - band * band_features);
    const int row = rest / width;
    // Every other band goes through the rows backwards: it begins with those just used.
    return {first_row_tile + (band % 2 == 0 ? row : rows - 1 - row),
            band * band_features + rest - row * width};
  }

 private:
  static constexpr int min_of(int a, int b) { return a < b ? a : b; }
};

}  // namespace moe::cuda
