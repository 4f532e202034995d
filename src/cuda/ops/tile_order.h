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

/// Two lists, one behind the other, taken in turns so that `first` of `all` are spread evenly among the rest: what
/// is at `place`. 0 <= place < all.
constexpr int spread(int place, int first, int all) {
  if (first == 0 || first == all) return place;
  // place · first / all, without a division of 64 bits, which is a call in device code.
  const auto wide = [](int a, int b) { return static_cast<std::int64_t>(a) * b; };
  auto index = static_cast<int>(static_cast<float>(place) *
                                (static_cast<float>(first) / static_cast<float>(all)));
  while (wide(index, all) > wide(place, first)) --index;
  while (wide(index + 1, all) <= wide(place, first)) ++index;
  const bool of_first = wide(index + 1, all) <= wide(place, first) + first;
  return of_first ? index : first + place - index;
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

/// The order of work items: expert by expert, so that what is read by several comes from memory once. Up to
/// `together` tiles of an expert take turns on one feature pair after the other: the pair's weights are read by all of
/// them one right after the other, and rows again `together` tickets later. With 1, one tile after the other has
/// all feature pairs (choose_grouped_gemm() says when). Items of experts with one tile, whose weights come from memory,
/// are spread evenly among those of the others, whose weights come from L2 but for the first time.
struct TileOrder {
  int row_tiles = 0;
  /// Of experts that have more than one: the first ones of the list, expert by expert.
  int several = 0;
  int feature_pairs = 0;
  int together = 1;

  struct Item {
    int row_tile;
    int feature_pair;
  };
  [[nodiscard]] constexpr int items() const { return row_tiles * feature_pairs; }
  /// What a ticket means but for the order among an expert's tiles: ask of_expert() with what the list says of the
  /// row tile.
  [[nodiscard]] constexpr Item at(int ticket) const {
    const int place = spread(ticket, several * feature_pairs, items());
    return {place / feature_pairs, place % feature_pairs};
  }
  /// The item in place of `item`, whose row tile is number `index` of its expert's `tiles`.
  [[nodiscard]] constexpr Item of_expert(const Item& item, int index, int tiles) const {
    if (together == 1) return item;
    if (tiles <= together) {
      const int place = index * feature_pairs + item.feature_pair;
      return {item.row_tile - index + place % tiles, place / tiles};
    }
    // Parts that differ by one tile at most, the larger ones first.
    const int parts = divide_up(tiles, together);
    const int smaller = tiles / parts;
    const int in_larger = tiles % parts * (smaller + 1);
    const bool larger = index < in_larger;
    const int size = smaller + (larger ? 1 : 0);
    const int in_part = larger ? index % size : (index - in_larger) % size;
    const int place = in_part * feature_pairs + item.feature_pair;
    return {item.row_tile - in_part + place % size, place / size};
  }
};

}  // namespace moe::cuda
