#include "cuda/ops/grouped_gemm_sm90.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "cuda/check.h"
#include "cuda/l2_partitions.h"
#include "cuda/launch.h"
#include "cuda/ops/grouped_gemm_sm90_kernels.h"
#include "cuda/ops/tile_order.h"
#include "cuda/tensor_map.h"

namespace moe::cuda {
namespace {

static_assert(TokenMaps::kCount * kRowUnit == kGatheringTile, "a map for each tile size");

GroupedGemmKernel kernel_for(GemmEpilogue epilogue, int largest_tile, bool gathers) {
  switch (epilogue) {
    case GemmEpilogue::kStore:
      return grouped_gemm_kernel_for<GemmEpilogue::kStore>(largest_tile, gathers);
    case GemmEpilogue::kSwiGLU:
      return grouped_gemm_kernel_for<GemmEpilogue::kSwiGLU>(largest_tile, gathers);
    case GemmEpilogue::kGated:
      return grouped_gemm_kernel_for<GemmEpilogue::kGated>(largest_tile, gathers);
    case GemmEpilogue::kReLU2:
      return grouped_gemm_kernel_for<GemmEpilogue::kReLU2>(largest_tile, gathers);
    case GemmEpilogue::kStoreBias:
      return grouped_gemm_kernel_for<GemmEpilogue::kStoreBias>(largest_tile, gathers);
  }
  return {};
}

/// Blocks of a persistent grid: as many clusters as the device holds at once.
int resident_blocks(const GroupedGemmKernel& kernel, const DeviceFacts& facts) {
  MOE_CUDA_CHECK(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      kernel.shared_bytes));
  const int most = facts.multiprocessors / kernel.cluster * kernel.cluster;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(most));
  config.blockDim = dim3(static_cast<unsigned>(kernel.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(kernel.shared_bytes);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(kernel.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  MOE_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel.function, &config));
  MOE_CHECK(clusters > 0, "{} cannot hold a cluster of {} blocks with {} bytes of shared memory",
            facts.name, kernel.cluster, kernel.shared_bytes);
  return std::min(clusters * kernel.cluster, most);
}

}  // namespace

GroupedGemmConfig choose_grouped_gemm(const GroupedGemmSpec& spec, std::int64_t rows,
                                      int largest_tile, const DeviceFacts& facts) {
  const auto l2 = static_cast<double>(facts.l2_bytes);
  const double clusters = facts.multiprocessors / 2;
  const auto depth = static_cast<double>(spec.k_blocks * kBlockDepth * 2);
  const double rows_bytes = largest_tile * depth;
  const double weights_bytes = 2 * kBlockFeatures * depth;
  const auto pairs = static_cast<double>((spec.feature_blocks + 1) / 2);
  // What is read again comes from L2 where all clusters together read less in between than a part of it that was
  // fitted for either order (docs/levels/level08_persistent.md, "Expert by expert"). One tile
  // after the other, each with all feature pairs: weights are read again `pairs` tickets later, when each of the
  // clusters that work at a time, on clusters / pairs tiles of as few experts as have these, has done that part of
  // its item. Rows are asked for evenly so.
  const double tiles = std::max(
      1, RowSplit(static_cast<int>((rows + spec.experts - 1) / spec.experts), largest_tile).tiles);
  const double until_weights =
      rows_bytes + weights_bytes * pairs / std::min(tiles, std::max(1.0, clusters / pairs));
  // Else n tiles together, one feature pair after the other: rows are read again n tickets later, n / clusters of
  // n · rows + clusters / n · weights. Fewer than four read weights too often to be worth it, whatever L2 holds.
  constexpr double kFewest = 4;
  constexpr double kMost = 64;
  const double room = std::max(0.0, l2 / 8 - weights_bytes);
  const double together = until_weights <= l2 / 32
                              ? 1
                              : std::clamp(std::sqrt(room * clusters / rows_bytes), kFewest, kMost);
  return {
      .largest_tile = largest_tile,
      .tiles_together = static_cast<int>(together),
      .by_partition = are_placed({spec.feature_blocks, spec.k_blocks}, spec.experts, facts),
      .weights_read_once = rows <= spec.experts * std::max(largest_tile, kGatheringTile) * 7 / 8};
}

std::string to_string(const GroupedGemmConfig& config) {
  return fmt::format("{}tiles of {}x{}, up to {} of an expert together{}{}",
                     config.cooperative() ? "cooperative " : "",
                     (config.cooperative() ? 2 : 1) * kBlockFeatures, config.largest_tile,
                     config.tiles_together,
                     config.by_partition ? ", half for either partition of L2" : "",
                     config.weights_read_once ? ", weights read once" : "");
}

std::size_t grouped_gemm_shared_bytes(int largest_tile, bool gathers) {
  int most = 0;
  for (const GemmEpilogue epilogue : {GemmEpilogue::kSwiGLU, GemmEpilogue::kStore}) {
    most = std::max(most, kernel_for(epilogue, largest_tile, gathers).shared_bytes);
  }
  return static_cast<std::size_t>(most);
}

struct GroupedGemmSm90::State {
  GroupedGemmSpec spec;
  GroupedGemmConfig config;
  GroupedGemmKernel kernel;
  int blocks = 0;
  L2Partitions partitions;
  // Descriptions of the buffers of the last run.
  const void* weights = nullptr;
  bool placed = false;
  const void* rows = nullptr;
  void* out = nullptr;
  std::int64_t capacity = 0;
  TokenMaps tokens{};
  OutMaps out_maps{};
  WeightMaps weight_maps{};

  void describe(const void* weights_now, bool placed_now) {
    if (weights == weights_now && placed == placed_now) return;
    const BlockedShape shape{spec.feature_blocks, spec.k_blocks};
    const std::int64_t units = units_of(shape, spec.experts, placed_now);
    const std::int64_t rest = spec.experts * shape.feature_blocks * shape.k_blocks - 2 * units;
    constexpr std::uint64_t kPiece = L2Homes::kPieceBytes;
    const auto* const bytes = static_cast<const std::byte*>(weights_now);
    for (int shift = 0; units > 0 && shift < WeightMaps::kRest; ++shift) {
      const auto at = [&](int piece) {
        return static_cast<std::uint64_t>(piece_of_unit(shift != 0, piece)) * kPiece;
      };
      weight_maps.of[shift] = make_piece_map({.data = bytes + at(0),
                                              .blocks = units,
                                              .stride = L2Homes::kUnitBytes,
                                              .pair_stride = at(2) - at(0),
                                              .piece_stride = at(1) - at(0)});
    }
    weight_maps.of[WeightMaps::kRest] =
        make_piece_map({.data = bytes + static_cast<std::uint64_t>(units) * L2Homes::kUnitBytes,
                        .blocks = std::max<std::int64_t>(rest, 1),
                        .stride = kBlockBytes,
                        .pair_stride = 2 * kPiece,
                        .piece_stride = kPiece});
    weights = weights_now;
    placed = placed_now;
  }
  void describe(const void* rows_now, void* out_now, std::int64_t capacity_now) {
    if (rows == rows_now && out == out_now && capacity == capacity_now) return;
    for (int i = 0; i < TokenMaps::kCount; ++i) {
      tokens.half_tile[i] = make_tensor_map({.data = rows_now,
                                             .rows = capacity_now,
                                             .columns = spec.k_blocks * kBlockDepth,
                                             .box_rows = kRowUnit / 2 * (i + 1),
                                             .box_columns = static_cast<int>(kBlockDepth)});
    }
    for (int i = 0; i < OutMaps::kCount; ++i) {
      out_maps.box[i] = make_tensor_map({.data = out_now,
                                         .rows = capacity_now,
                                         .columns = spec.out_columns,
                                         .box_rows = kRowUnit << i,
                                         .box_columns = 64});
    }
    rows = rows_now;
    out = out_now;
    capacity = capacity_now;
  }
};

GroupedGemmSm90::GroupedGemmSm90(const GroupedGemmSpec& spec, const GroupedGemmConfig& config,
                                 const DeviceFacts& facts)
    : state_(std::make_unique<State>()) {
  MOE_INTERNAL_CHECK(spec.out_columns % 64 == 0, "out_columns={} is no multiple of 64",
                     spec.out_columns);
  MOE_INTERNAL_CHECK(spec.experts * spec.feature_blocks <= INT32_MAX,
                     "{} experts x {} feature blocks exceed 32-bit numbers", spec.experts,
                     spec.feature_blocks);
  MOE_INTERNAL_CHECK(spec.feature_blocks < 1 << (32 - Work::kFeatureShift),
                     "{} feature blocks exceed the queue's field", spec.feature_blocks);
  state_->spec = spec;
  state_->config = config;
  MOE_INTERNAL_CHECK(config.largest_tile == kGatheringTile || config.largest_tile == kDeepTile ||
                         config.largest_tile == kCooperativeTile,
                     "no kernel for tiles of {} rows", config.largest_tile);
  MOE_INTERNAL_CHECK(!config.cooperative() || spec.k_blocks >= kFewestCooperativeSteps,
                     "{} blocks of a reduction, cooperating blocks need {}", spec.k_blocks,
                     kFewestCooperativeSteps);
  state_->kernel = kernel_for(spec.epilogue, config.largest_tile, config.gathers);
  state_->blocks = resident_blocks(state_->kernel, facts);
  if (config.by_partition) state_->partitions = l2_partitions(facts);
}
GroupedGemmSm90::GroupedGemmSm90(GroupedGemmSm90&&) noexcept = default;
GroupedGemmSm90& GroupedGemmSm90::operator=(GroupedGemmSm90&&) noexcept = default;
GroupedGemmSm90::~GroupedGemmSm90() = default;

const GroupedGemmConfig& GroupedGemmSm90::config() const {
  return state_->config;
}

int GroupedGemmSm90::announcements() const {
  const auto pairs = static_cast<int>((state_->spec.feature_blocks + 1) / 2);
  return pairs * state_->kernel.cluster * state_->kernel.consumers_of_tile;
}

void GroupedGemmSm90::run(const GroupedGemmCall& call, cudaStream_t stream) {
  if (call.capacity == 0) return;
  State& s = *state_;
  MOE_INTERNAL_CHECK(
      call.gather_from == nullptr || (activates(s.spec.epilogue) && s.config.gathers),
      "only kernels that activate gather, and this one ({}) was not chosen to",
      to_string(s.config));
  MOE_INTERNAL_CHECK(!call.rows_of_previous || !activates(s.spec.epilogue),
                     "kernels that activate read more of the launch before than rows");
  MOE_INTERNAL_CHECK(call.awaits == 0 || call.rows_of_previous, "awaits rows of no launch");
  MOE_INTERNAL_CHECK(call.packed_bias == nullptr || (s.spec.epilogue != GemmEpilogue::kStore &&
                                                     s.spec.epilogue != GemmEpilogue::kSwiGLU),
                     "the epilogue adds no biases");
  s.describe(call.packed_weights, call.weight_homes.known());
  s.describe(call.rows, call.out, call.capacity);
  const GemmArguments arguments{
      .homes = call.weight_homes,
      .source = static_cast<const std::byte*>(call.gather_from),
      .gathered = static_cast<std::byte*>(call.rows),
      .source_row_bytes = static_cast<int>(s.spec.k_blocks * kBlockDepth * 2),
      .out = static_cast<__nv_bfloat16*>(call.out),
      .out_columns = s.spec.out_columns,
      .row_tiles = call.row_tiles,
      .tickets = call.tickets,
      .partitions = s.partitions,
      .finished = call.announces ? call.row_tiles.finished : nullptr,
      .rows_of_previous = call.rows_of_previous,
      .awaits = call.awaits,
      .feature_blocks = static_cast<int>(s.spec.feature_blocks),
      .fours = fours_of(s.spec.feature_blocks, call.weight_homes.known()),
      .k_blocks = static_cast<int>(s.spec.k_blocks),
      .tiles_together = s.config.tiles_together,
      .weights_read_once = s.config.weights_read_once,
      .bias = call.packed_bias,
      .activation = s.spec.activation};
  launch_overlapping("grouped_gemm_kernel", s.kernel.function,
                     dim3(static_cast<unsigned>(s.blocks)),
                     dim3(static_cast<unsigned>(s.kernel.threads)),
                     static_cast<std::size_t>(s.kernel.shared_bytes), stream, s.tokens, s.out_maps,
                     s.weight_maps, arguments);
}

}  // namespace moe::cuda
