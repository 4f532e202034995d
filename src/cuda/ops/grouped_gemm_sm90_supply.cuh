// The roles of grouped_gemm_sm90_kernel.cuh that supply the consumers: scheduler, gathering warp, loader,
// and the warpgroup that copies rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/device/async_copy.cuh"
#include "cuda/device/bulk_copy.cuh"
#include "cuda/device/cluster.cuh"
#include "cuda/device/elect.cuh"
#include "cuda/device/global_flag.cuh"
#include "cuda/device/mbarrier.cuh"
#include "cuda/device/overlap.cuh"
#include "cuda/ops/grouped_gemm_sm90_parts.cuh"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {

/// Every other pair of feature blocks, or all of them, in the order in which a block draws from them: first the half
/// whose weights are behind its partition of L2 (pack_blocked.h), then what is left of the other. Where partitions
/// are not known, or not to be told apart, there is one part.
struct FeaturePart {
  int half;
  int parts;
  int left;

  __device__ __forceinline__ explicit FeaturePart(const GemmArguments& p)
      : parts(p.partitions.known ? 2 : 1), left(parts) {
    const std::uint32_t self = multiprocessor();
    half = static_cast<int>(p.partitions.second[self / 32] >> self % 32 & 1);
  }
  /// Pairs of this part, of `all`.
  [[nodiscard]] __device__ __forceinline__ int pairs(int all) const {
    return parts == 1 ? all : (all + 1 - half) / 2;
  }
  /// First feature block of pair number `pair` of this part.
  [[nodiscard]] __device__ __forceinline__ int feature(int pair) const {
    return 2 * (parts * pair + half);
  }
  /// To the next part; false: that was the last one.
  __device__ __forceinline__ bool advance() {
    half ^= 1;
    return --left > 0;
  }
};

// --- scheduler -----------------------------------------------------------------------------------
/// Rows x k blocks, of 4 cycles each, in which a ticket is drawn and what it means has come to the loaders.
inline constexpr int kStepsOfDraw = 1800;
/// Rounds of items, one a cluster, at the end of a part, in which tickets are not drawn in advance.
inline constexpr int kLastRounds = 3;

/// One thread of the cluster: draws tickets and writes what they mean into both blocks' queues. Either
/// block takes all rows of the tile and features of its own, in pingpong a block of them, cooperating ones
/// a pair. Where there are not enough features left, or more rows than a block holds, they split the rows.
template <class Config>
__device__ __forceinline__ void schedule(const Shared<Config>& shared, const GemmArguments& p) {
  FeaturePart part(p);
  const int all_pairs = divide_up(p.feature_blocks, 2);
  const int row_tiles = p.row_tiles.count[RowTiles::kTiles];
  const int several = p.row_tiles.count[RowTiles::kSeveral];
  // A cluster's first ticket is dealt out by its number, of whichever part, for those that start late would find
  // that others have two. Where it starts, and so its part, is not known before.
  const int all_clusters = static_cast<int>(gridDim.x) / Config::kCluster;
  const int clusters = divide_up(all_clusters, part.parts);  // of the first part, at most one more
  const int cluster = static_cast<int>(blockIdx.x) / Config::kCluster;
  int ticket = cluster % clusters;
  const int own_half = part.half;
  part.half = cluster / clusters;
  const auto publish = [&](int slot, int rank, const int4& work) {
    store_async(cluster_address(shared.queue(slot), rank), work,
                cluster_address(shared.queued(slot), rank));
  };
  int turn = 0;
  const auto wait_for_place = [&] { mbarrier_wait(shared.taken(turn % 2), (turn / 2 & 1) ^ 1); };
  // Whether a loader has so much left of an item when that begins.
  const bool long_items =
      Config::kLargestTile * (p.k_blocks - Config::kWeightSlots) >= kStepsOfDraw;
  const auto draw = [&] {
    // Blocks that have begun early would draw what is left for the others.
    if (p.rows_of_previous && p.awaits == 0) wait_for_previous_kernel();
    const int dealt = part.half == 0 ? clusters : all_clusters - clusters;
    return dealt + atomicAdd(p.tickets + part.half, 1);
  };
  bool dealt = true;
  for (int next = 0;; ticket = next) {
    const int pairs = part.pairs(all_pairs);
    const TileOrder order{row_tiles, several, pairs, p.tiles_together};
    if (ticket >= order.items()) {
      if (dealt) {
        part.half = own_half;
      } else if (!part.advance()) {
        break;
      }
      dealt = false;
      next = draw();
      continue;
    }
    const int slot = turn % 2;
    TileOrder::Item item = order.at(ticket);
    RowTile tile = p.row_tiles.tiles[item.row_tile];
    if (tile.tiles > 1 && p.tiles_together > 1) {
      item = order.of_expert(item, tile.index, tile.tiles);
      tile = p.row_tiles.tiles[item.row_tile];
    }
    const int feature = part.feature(item.feature_pair);
    if (dealt) part.half = own_half;
    dealt = false;
    const bool alone = feature + 1 == p.feature_blocks;
    // What the other block has: the second of the pair, or a pair of its own.
    constexpr int kPairsTogether = Config::kFeatureBlocks;
    const int in_together = item.feature_pair % kPairsTogether;
    const int next_features = kPairsTogether == 1 ? 1 : 2 * part.parts;
    const int last_feature = feature + (kPairsTogether - 1 - in_together) * next_features + 1;
    const bool whole = tile.rows <= Config::kLargestTile && last_feature < p.feature_blocks;
    if (whole && in_together != 0) {  // handed out with the pair before
      next = draw();
      continue;
    }
    const bool once = p.weights_read_once && tile.tiles == 1;
    // Its weights come from memory, those of tiles that take longer from L2.
    const bool ahead = several > 0 && tile.tiles == 1 && tile.rows <= Config::kLargestTile / 2;
    const auto weights_of = [&](int feature_block) {
      return WorkWeights::of(
          BlockPlace::of(p.fours, p.feature_blocks, p.k_blocks, tile.expert, feature_block), ahead);
    };
    const WorkWeights weights = weights_of(feature);
    const WorkWeights of_second = weights.behind(p.k_blocks);
    wait_for_place();
    ++turn;
    if (whole) {
      publish(slot, 0,
              Work::pack(weights, tile.first_row, item.row_tile, tile.rows, true, tile.valid, once,
                         feature));
      publish(slot, 1,
              Work::pack(Config::kCooperative ? weights_of(feature + next_features) : of_second,
                         tile.first_row, item.row_tile, tile.rows, true, tile.valid, once,
                         feature + next_features));
    } else {
      // One unit cannot be split: then the second block computes it, too, and stores nothing. A
      // second feature block that is not there is the first one again, not stored, either.
      const int upper = (tile.rows / kRowUnit + 1) / 2 * kRowUnit;
      const int skipped = upper == tile.rows ? 0 : upper;
      publish(slot, 0,
              Work::pack(weights, tile.first_row, item.row_tile, upper, false,
                         min(tile.valid, upper), once, feature));
      publish(slot, 1,
              Work::pack(Config::kCooperative && !alone ? of_second : weights,
                         tile.first_row + skipped, item.row_tile, tile.rows - skipped, false,
                         max(tile.valid - upper, 0), once, feature));
    }
    // NOTE: some tickets are not drawn in advance. Where tiles take turns on weights they should begin together, so
    // each is drawn when the loader has nearly done with the last item; short ones would be held up by that. And
    // the last ones of all are drawn when the queue has a place, for a cluster that held some in the end would
    // have one more than others. Cooperating blocks of small tiles lost by either.
    const bool last_rounds = order.items() - ticket <= kLastRounds * clusters;
    if (!Config::kCooperative && (last_rounds || (long_items && p.tiles_together > 1))) {
      wait_for_place();
      const int last = turn - 1;
      if (last > 0 && long_items) mbarrier_wait(shared.taken(last % 2), last / 2 & 1);
    }
    next = draw();
  }
  // Consumers that take turns are told one by one that it is over.
  for (int i = 0; i < 2 / Config::kConsumersOfTile; ++i, ++turn) {
    const int slot = turn % 2;
    mbarrier_wait(shared.taken(slot), (turn / 2 & 1) ^ 1);
    publish(slot, 0, {0, 0, 0, 0});
    publish(slot, 1, {0, 0, 0, 0});
  }
}

// --- gathering -----------------------------------------------------------------------------------
/// One warp a block: copies rows from the tokens' order to the experts', 16 rows at a time, in the
/// order in which the scheduler hands out their tiles. So the copy runs beside the products, and the
/// first tiles wait for little of it. Every lane that takes part moves a piece of a row; the block's first rows are
/// moved by all lanes, through slots of the ring that are not needed yet.
/// NOTE: units are drawn, not dealt out by the block's number: where another stream's kernel holds
/// multiprocessors, the blocks that wait for rows may not wait for one that has not started.
template <class Config>
__device__ __forceinline__ void gather(const Shared<Config>& shared, const GemmArguments& p) {
  constexpr int kUnitsPerTile = Config::kLargestTile / kRowUnit;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int pieces_per_row = divide_up(p.source_row_bytes, Config::kGatherPieceBytes);
  const int row_tiles = p.row_tiles.count[RowTiles::kTiles];
  const int several = p.row_tiles.count[RowTiles::kSeveral];
  std::uint32_t parity = 0;
  std::int32_t* const ticket = p.row_tiles.tickets + RowTiles::kGatherTicket;
  const auto draw = [&] { return lane == 0 ? atomicAdd(ticket, 1) : 0; };
  // A unit of rows through as many pieces of memory as there are.
  const auto move = [&](int row, int rows, int pieces_at_once, std::uint32_t memory) {
    const int token = lane < rows ? p.row_tiles.row_to_token[row + lane] : 0;
    const int pieces = rows * pieces_per_row;
    for (int base = 0; base < pieces; base += pieces_at_once) {
      const int piece = base + lane;
      const bool mine = lane < pieces_at_once && piece < pieces;
      const int in_unit = mine ? piece / pieces_per_row : 0;
      const int at = (piece - in_unit * pieces_per_row) * Config::kGatherPieceBytes;
      const int bytes = min(Config::kGatherPieceBytes, p.source_row_bytes - at);
      const int from = __shfl_sync(0xffffffffU, token, in_unit);
      const std::uint32_t my_memory = memory + lane * Config::kGatherPieceBytes;
      if (mine) {
        mbarrier_expect_bytes(shared.gathered(), bytes);
        bulk_load(my_memory, p.source + static_cast<std::size_t>(from) * p.source_row_bytes + at,
                  bytes, shared.gathered());
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(shared.gathered());
      mbarrier_wait(shared.gathered(), parity);
      parity ^= 1;
      if (mine) {
        bulk_store(p.gathered + static_cast<std::size_t>(row + in_unit) * p.source_row_bytes + at,
                   my_memory, bytes);
        bulk_commit_group();
        bulk_wait_group_read<0>();
      }
      __syncwarp();
    }
  };
  bool first = true;  // none gathered yet
  const auto give_ring_back = [&] {
    if (first && lane < Config::kCluster) {
      mbarrier_arrive_cluster(cluster_address(shared.first_gathered(), lane));
    }
    first = false;
  };
  int drawn = draw();
  for (;;) {
    const int unit = __shfl_sync(kAllLanes, drawn, 0);
    if (unit >= row_tiles * kUnitsPerTile) break;  // those behind a tile's end are empty
    drawn = draw();                                // on its way while this one's rows are
    const int number = spread(unit / kUnitsPerTile, several, row_tiles);
    const RowTile tile = p.row_tiles.tiles[number];
    const int at = unit % kUnitsPerTile * kRowUnit;
    const int rows = min(tile.valid - at, kRowUnit);
    if (rows <= 0) {  // as all others of this tile that are still to be drawn
      if (lane == 0) atomicMax(ticket, (unit / kUnitsPerTile + 1) * kUnitsPerTile);
      continue;
    }
    move(tile.first_row + at, rows, first ? Config::kFirstPieces : Config::kGatherPieces,
         first ? shared.first_piece(0) : shared.piece(0));
    give_ring_back();
    bulk_wait_group<0>();
    __syncwarp();
    if (lane == 0) add_release(p.row_tiles.ready + number, 1);
  }
  give_ring_back();
}

/// Until the tile's rows are there, where this kernel gathers them or the one before makes them. A tile
/// that the blocks split waits for the whole, too.
__device__ __forceinline__ void wait_for_rows(const GemmArguments& p, int row_tile) {
  if (p.source != nullptr) {
    wait_for_count(p.row_tiles.ready + row_tile, p.row_tiles.tiles[row_tile].rows / kRowUnit);
  } else if (p.awaits > 0) {
    wait_for_count(p.row_tiles.finished + row_tile, p.awaits);
  } else {
    if (p.rows_of_previous) wait_for_previous_kernel();
    return;
  }
  fence_proxy_async_global();  // the loads that follow go another way than this thread's
}

// --- loader --------------------------------------------------------------------------------------
// Loaders are warps of which one lane issues copies, so that the compiler knows their operands as the warp's
// (elect_lane()).

/// What the block does next, for all lanes of the warp that loads its weights; one of them counts for the
/// queue's bytes.
template <class Config>
__device__ __forceinline__ Work next_load(const Shared<Config>& shared, int turn) {
  const int slot = turn % 2;
  if (elect_lane()) mbarrier_arrive_expect_bytes(shared.queued(slot), sizeof(Work));
  mbarrier_wait_cluster(shared.queued(slot), turn / 2 & 1);
  return Work::read(shared.queue(slot)).uniform();
}
/// Of a slot that next_load() has read.
template <class Config>
__device__ __forceinline__ void give_back_place(const Shared<Config>& shared, int turn) {
  if (elect_lane()) mbarrier_arrive_cluster(cluster_address(shared.taken(turn % 2), 0));
}

/// The k blocks of a feature block, one after the other, by all lanes of a warp, of which one asks for them.
class WeightReader {
 public:
  __device__ __forceinline__ WeightReader(const WeightMaps& maps, const GemmArguments& p,
                                          const WorkWeights& weights, int feature_blocks_behind = 0)
      : homes_(p.homes),
        weights_(weights),
        maps_(weights.in_unit() ? maps.of : maps.of + WeightMaps::kRest),
        number_(weights.first() + feature_blocks_behind * p.k_blocks) {
    turn_page();
    look();
  }
  __device__ __forceinline__ void load(std::uint32_t to, std::uint32_t barrier,
                                       std::uint64_t policy) const {
    tensor_load_nth(to, map(0), number_, barrier, policy);
  }
  /// For both blocks of the cluster.
  __device__ __forceinline__ void load_multicast(std::uint32_t to, std::uint32_t barrier,
                                                 std::uint64_t policy) const {
    tensor_load_nth_multicast(to, map(0), number_, barrier, policy, 0b11);
  }
  /// Brings the one that comes kAhead later into L2.
  static constexpr int kAhead = 4;
  __device__ __forceinline__ void prefetch() const {
    tensor_prefetch_nth(map(kAhead), number_ + kAhead);
  }
  __device__ __forceinline__ void advance() {
    ++number_;
    shifts_ >>= 1;
    if (++taken_ % (kWarpSize / 2) == 0) look();
  }

 private:
  /// Loads what is known of this unit's page and 31 behind it.
  __device__ __forceinline__ void turn_page() {
    if (!weights_.in_unit()) return;
    first_page_ = static_cast<std::uint32_t>(number_) / L2Homes::kUnitsOfPage;
    pages_ = homes_.of_pages(first_page_);
  }
  /// Which of a unit's pieces are ours, for this unit and 31 behind it.
  __device__ __forceinline__ void look() {
    if (!weights_.in_unit()) return;
    const auto here = static_cast<std::uint32_t>(number_);
    if (here / L2Homes::kUnitsOfPage - first_page_ > 30) turn_page();
    const std::uint32_t unit = here + threadIdx.x % kWarpSize;
    const std::uint32_t page = unit / L2Homes::kUnitsOfPage - first_page_;
    shifts_ = __ballot_sync(kAllLanes, homes_.of_unit(unit, pages_ >> page) != weights_.half());
  }
  [[nodiscard]] __device__ __forceinline__ const CUtensorMap* map(int behind) const {
    return maps_ + (shifts_ >> behind & 1);
  }

  const L2Homes& homes_;
  const WorkWeights weights_;
  const CUtensorMap* const maps_;
  int number_;
  int taken_ = 0;
  std::uint32_t first_page_ = 0;
  std::uint32_t pages_ = 0;   // s of pages, but for the units' part
  std::uint32_t shifts_ = 0;  // bit i: of the unit i behind this one
};

/// One warp a block, in pingpong: fills the ring, weights and rows of one k block a stage. Blocks that
/// have the same rows load half of them each, for both.
template <class Config>
__device__ __forceinline__ void load(const Shared<Config>& shared, const TokenMaps& tokens,
                                     const WeightMaps& all_weights, const GemmArguments& p) {
  const auto rank = static_cast<int>(cluster_rank());
  RingPosition<Config::kWeightSlots> at;
  for (int turn = 0;; ++turn) {
    const Work work = next_load(shared, turn);
    const int rows = work.rows();
    if (rows == 0) {  // the other consumer is told next; nobody waits for that slot any more
      if (elect_lane()) {
        mbarrier_arrive_expect_bytes(shared.queued(turn % 2 ^ 1), sizeof(Work));
      }
      return;
    }
    WeightReader weights(all_weights, p, work.weights);
    const bool ahead = work.weights.ahead();
    const std::uint64_t policy = l2_policy(work.read_once());
    const bool half = work.shared();
    const int my_rows = half ? rows / 2 : rows;  // of a box
    const CUtensorMap* map = &tokens.half_tile[my_rows / 8 - 1];
    const std::uint32_t offset = half ? rank * my_rows * Config::kRowBytes : 0;
    const int row = work.first_row + (half ? rank * my_rows : 0);
    const std::uint32_t bytes = static_cast<std::uint32_t>(kBlockBytes) + rows * Config::kRowBytes;
    int column = 0;
    const auto load_stage = [&](auto first, bool prefetches) {
      mbarrier_wait(shared.empty(at.stage), at.parity ^ 1);
      const std::uint32_t full = shared.full(at.stage);
      const auto load_rows_of_stage = [&] {
        const std::uint32_t to = shared.row_slot(at.stage) + offset;
        if (half) {
          tensor_load_multicast(to, map, column, row, full, 0b11);
        } else {
          tensor_load(to, map, column, row, full);
        }
      };
      if (elect_lane()) {
        mbarrier_arrive_expect_bytes(full, bytes);
        weights.load(shared.weight_slot(at.stage), full, policy);
        if (!first.value) load_rows_of_stage();
        if (prefetches) weights.prefetch();
      }
      if (first.value) {  // by all lanes: the compiler keeps what the loop counts for the warp
        wait_for_rows(p, work.row_tile);
        if (elect_lane()) load_rows_of_stage();
      }
      weights.advance();
      column += static_cast<int>(kBlockDepth);
      at.advance();
    };
    // The place is given back late where the item is longer than the draw of a ticket: some are not drawn before.
    const int late = max(0, p.k_blocks - kStepsOfDraw / rows);
    if (late <= 1) give_back_place(shared, turn);
    load_stage(std::true_type(), ahead && WeightReader::kAhead < p.k_blocks);
    if constexpr (Config::kGatherPieces > 0) {
      // Until then the slots that come next are those through which either block gathers its first rows.
      if (turn == 0 && p.source != nullptr) mbarrier_wait_cluster(shared.first_gathered(), 0);
    }
    for (int k = 1; k < p.k_blocks; ++k) {
      if (k == late && k > 1) give_back_place(shared, turn);
      load_stage(std::false_type(), ahead && k + WeightReader::kAhead < p.k_blocks);
    }
  }
}

/// One warp a block, where blocks cooperate: fills the ring of weights, for each k block one slot a
/// consumer. Blocks that have the same weights load those of one consumer each, for both.
template <class Config>
__device__ __forceinline__ void load_weights(const Shared<Config>& shared,
                                             const WeightMaps& all_weights,
                                             const GemmArguments& p) {
  const auto rank = static_cast<int>(cluster_rank());
  RingPosition<Config::kWeightSlots> at;
  for (int turn = 0;; ++turn) {
    const Work work = next_load(shared, turn);
    if (work.rows() == 0) return;
    give_back_place(shared, turn);
    WeightReader weights(all_weights, p, work.weights);
    WeightReader of_second(all_weights, p, work.weights, work.shared() ? 1 : 0);
    const std::uint64_t policy = l2_policy(work.read_once());
    for (int k = 0; k < p.k_blocks; ++k) {
#pragma unroll
      for (int consumer = 0; consumer < 2; ++consumer) {
        mbarrier_wait(shared.empty(at.stage), at.parity ^ 1);
        if (elect_lane()) {
          const std::uint32_t full = shared.full(at.stage);
          const std::uint32_t to = shared.weight_slot(at.stage);
          mbarrier_arrive_expect_bytes(full, static_cast<std::uint32_t>(kBlockBytes));
          if (work.shared()) {
            (consumer == 0 ? weights : of_second).load(to, full, policy);
          } else if (consumer == rank) {
            weights.load_multicast(to, full, policy);
          }
        }
        at.advance();
      }
      weights.advance();
      of_second.advance();
    }
  }
}

/// One warp a block, where blocks cooperate on rows that are in the experts' order: fills the ring of
/// rows, by boxes of half a tile.
template <class Config>
__device__ __forceinline__ void load_boxes(const Shared<Config>& shared, const TokenMaps& tokens,
                                           const GemmArguments& p) {
  RingPosition<Config::kRowSlots> at;
  for (int turn = 0;; ++turn) {
    const int slot = turn % 2;
    mbarrier_wait_cluster(shared.queued(slot), turn / 2 & 1);
    const Work work = Work::read(shared.queue(slot)).uniform();
    const int rows = work.rows();
    if (rows == 0) return;
    const int half = rows / 2;
    const CUtensorMap* map = &tokens.half_tile[half / 8 - 1];
    if (elect_lane()) mbarrier_arrive_cluster(cluster_address(shared.taken(slot), 0));
    wait_for_rows(p, work.row_tile);
    for (int k = 0; k < p.k_blocks; ++k) {
      mbarrier_wait(shared.rows_empty(at.stage), at.parity ^ 1);
      if (elect_lane()) {
        const std::uint32_t full = shared.rows_full(at.stage);
        const std::uint32_t to = shared.row_slot(at.stage);
        mbarrier_arrive_expect_bytes(full, rows * Config::kRowBytes);
        const int column = k * static_cast<int>(kBlockDepth);
        tensor_load(to, map, column, work.first_row, full);
        tensor_load(to + half * Config::kRowBytes, map, column, work.first_row + half, full);
      }
      at.advance();
    }
  }
}

/// One warpgroup a block: brings the tile's rows into the ring from wherever they are, 16 bytes a copy,
/// eight lanes a row. Rows behind the last valid one are that one again.
template <class Config>
__device__ __forceinline__ void load_rows(const Shared<Config>& shared, const GemmArguments& p) {
  constexpr int kRowsAtOnce = Config::kRowThreads / 8;
  static_assert(kRowsAtOnce % 8 == 0, "a thread's rows have one place in the swizzle");
  constexpr int kPasses = Config::kLargestTile / kRowsAtOnce;
  const int thread = static_cast<int>(threadIdx.x) % Config::kRowThreads;
  const int first = thread / 8;
  const int piece = thread % 8;
  const std::uint32_t place = first * Config::kRowBytes + ((piece ^ (first & 7)) << 4);
  const std::uint32_t row_pieces = p.source_row_bytes / 16;
  const std::byte* const source = p.source != nullptr ? p.source : p.gathered;
  RingPosition<Config::kRowSlots> at;
  for (int turn = 0;; ++turn) {
    const int slot = turn % 2;
    mbarrier_wait_cluster(shared.queued(slot), turn / 2 & 1);
    const Work work = Work::read(shared.queue(slot));
    const int rows = work.rows();
    if (rows == 0) return;
    __syncwarp();  // all lanes have read it
    if (threadIdx.x % 32 == 0) mbarrier_arrive_cluster(cluster_address(shared.taken(slot), 0));
    std::uint32_t from[kPasses];  // in pieces
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = work.first_row + max(min(first + i * kRowsAtOnce, work.valid() - 1), 0);
      const int token = p.source != nullptr ? p.row_tiles.row_to_token[row] : row;
      from[i] = token * row_pieces + piece;
    }
    for (int k = 0; k < p.k_blocks; ++k) {
      mbarrier_wait(shared.rows_empty(at.stage), at.parity ^ 1);
      const std::uint32_t to = shared.row_slot(at.stage) + place;
      const std::byte* const column = source + k * Config::kRowBytes;
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        if (i * kRowsAtOnce < rows) {
          copy_async(to + i * kRowsAtOnce * Config::kRowBytes,
                     column + static_cast<std::size_t>(from[i]) * 16);
        }
      }
      copy_async_arrive(shared.rows_full(at.stage));
      at.advance();
    }
  }
}

}  // namespace moe::cuda
