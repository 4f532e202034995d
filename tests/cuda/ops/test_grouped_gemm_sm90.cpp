// Our grouped GEMM for sm_90a, its packed weights and its tile list, against loops on the host.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/ops/grouped_gemm_sm90.h"
#include "cuda/ops/pack_blocked.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {
namespace {

std::vector<BFloat16> normal(std::int64_t count, std::uint64_t stream, double scale = 1) {
  std::vector<BFloat16> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = from_float<BFloat16>(static_cast<float>(scale * random_normal(77, stream, i)));
  }
  return values;
}

std::vector<float> widened(const std::vector<BFloat16>& values) {
  std::vector<float> wide(values.size());
  std::transform(values.begin(), values.end(), wide.begin(),
                 [](BFloat16 value) { return to_float(value); });
  return wide;
}

double dot(const float* a, const float* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

std::vector<std::int32_t> offsets_of(const std::vector<int>& counts) {
  std::vector<std::int32_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

class CudaGroupedGemmSm90 : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped() && device().facts().major != 9) GTEST_SKIP() << "kernels for sm_90a only";
  }

  struct List {
    /// `to`: dst_row of a permutation, top_k rows a token; empty where rows are in order already.
    List(CudaDevice& device, const std::vector<int>& counts, int largest_tile,
         const std::vector<std::int32_t>& to = {}, std::int64_t top_k = 1)
        : offsets(device, offsets_of(counts)),
          tiles(device,
                4 * std::max<std::int64_t>(
                        1, most_row_tiles(std::accumulate(counts.begin(), counts.end(), 0),
                                          static_cast<std::int64_t>(counts.size()), largest_tile))),
          counters(device, 1 + RowTiles::kTickets),
          ready(device, static_cast<std::int64_t>(tiles.download().size()) / 4),
          finished(device, static_cast<std::int64_t>(tiles.download().size()) / 4),
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
      return {reinterpret_cast<RowTile*>(tiles.data()),
              counters.data(),
              counters.data() + 1,
              ready.data(),
              row_to_token.data(),
              finished.data()};
    }
    DeviceArray<std::int32_t> offsets;
    DeviceArray<std::int32_t> tiles;
    DeviceArray<std::int32_t> counters;
    DeviceArray<std::int32_t> ready;
    DeviceArray<std::int32_t> finished;
    DeviceArray<std::int32_t> dst_row;
    DeviceArray<std::int32_t> row_to_token;
  };

  /// Two products in a row, [rows, depth] to [rows, inner] to [rows, depth], the second one behind the first
  /// or beside it.
  struct ChainInputs {
    std::vector<int> counts;
    std::int64_t depth;
    std::int64_t inner;
    DeviceArray<BFloat16> x;
    DeviceArray<BFloat16> gate_up;
    DeviceArray<BFloat16> down;
  };
  ChainInputs chain_inputs(const std::vector<int>& counts, std::int64_t depth, std::int64_t inner) {
    const std::int64_t matrix = static_cast<std::int64_t>(counts.size()) * inner * depth;
    const auto values = [&](std::int64_t count, int seed, double scale) {
      return DeviceArray<BFloat16>(device(), normal(count, seed, scale));
    };
    return {counts,
            depth,
            inner,
            values(offsets_of(counts).back() * depth, 0, 1),
            values(2 * matrix, 1, 0.1),
            values(matrix, 2, 0.1)};
  }
  struct Chain {
    std::vector<BFloat16> out;
    std::vector<std::int32_t> finished;  // of each row tile
    int announcements = 0;
  };
  Chain chain(const ChainInputs& in, int largest_tile, bool beside) {
    const auto experts = static_cast<std::int64_t>(in.counts.size());
    const std::int64_t rows = offsets_of(in.counts).back();
    const std::int64_t depth = in.depth;
    const std::int64_t inner = in.inner;
    const BlockedShape first = BlockedShape::gate_up(depth, inner);
    const BlockedShape second = BlockedShape::down(depth, inner);
    const DeviceBuffer packed_gate_up(first.bytes(experts));
    const DeviceBuffer packed_down(second.bytes(experts));
    pack_gate_up_blocked(in.gate_up.data(), in.gate_up.data() + experts * inner * depth, experts,
                         depth, inner, packed_gate_up.data(), stream());
    pack_rows_blocked(in.down.data(), experts, depth, inner, packed_down.data(), stream());
    const auto gemm = [&](GemmEpilogue epilogue, const BlockedShape& shape, std::int64_t columns) {
      const GroupedGemmSpec spec{.epilogue = epilogue,
                                 .experts = experts,
                                 .feature_blocks = shape.feature_blocks,
                                 .k_blocks = shape.k_blocks,
                                 .out_columns = columns};
      return GroupedGemmSm90(spec, choose_grouped_gemm(spec, rows, largest_tile, device().facts()),
                             device().facts());
    };
    GroupedGemmSm90 one = gemm(GemmEpilogue::kSwiGLU, first, inner);
    GroupedGemmSm90 two = gemm(GemmEpilogue::kStore, second, depth);
    const DeviceArray<BFloat16> act(device(), rows * inner);
    const DeviceArray<BFloat16> out(device(), rows * depth);
    const List list(device(), in.counts, largest_tile);
    one.run({.rows = in.x.data(),
             .packed_weights = packed_gate_up.data(),
             .out = act.data(),
             .capacity = rows,
             .row_tiles = list.views(),
             .ticket = list.views().tickets,
             .announces = beside},
            stream());
    two.run({.rows = act.data(),
             .packed_weights = packed_down.data(),
             .out = out.data(),
             .capacity = rows,
             .row_tiles = list.views(),
             .ticket = list.views().tickets + 1,
             .awaits = beside ? one.announcements() : 0},
            stream());
    Chain result{out.download(), list.finished.download(), one.announcements()};
    result.finished.resize(static_cast<std::size_t>(list.counters.download()[0]));
    EXPECT_TRUE(act.intact() && out.intact());
    return result;
  }

  /// These rows per expert, with every tile size. SwiGLU has `features` / 2 outputs.
  void check(GemmEpilogue epilogue, const std::vector<int>& counts, std::int64_t features,
             std::int64_t depth) {
    for (const int largest_tile : {kGatheringTile, kDeepTile, kCooperativeTile}) {
      check(epilogue, counts, features, depth, largest_tile);
    }
  }
  void check(GemmEpilogue epilogue, const std::vector<int>& counts, std::int64_t features,
             std::int64_t depth, int largest_tile) {
    const bool gated = epilogue == GemmEpilogue::kSwiGLU;
    SCOPED_TRACE(testing::Message()
                 << (gated ? "swiglu" : "store") << " features " << features << " depth " << depth
                 << " tiles of " << largest_tile << " rows " << testing::PrintToString(counts));
    const auto experts = static_cast<std::int64_t>(counts.size());
    const std::vector<std::int32_t> offsets = offsets_of(counts);
    const std::int64_t rows = offsets.back();
    const std::int64_t columns = gated ? features / 2 : features;  // of the output
    const GroupedGemmSpec spec{.epilogue = epilogue,
                               .experts = experts,
                               .feature_blocks = blocks_of(features, kBlockFeatures),
                               .k_blocks = blocks_of(depth, kBlockDepth),
                               .out_columns = columns};
    const GroupedGemmConfig config =
        choose_grouped_gemm(spec, rows, largest_tile, device().facts());
    const std::vector<BFloat16> x = normal(rows * depth, 0);
    // Scaled up, so that sums lie where silu is curved and where it is not.
    const std::vector<BFloat16> w =
        normal(experts * features * depth, 1, 2 / std::sqrt(static_cast<double>(depth)));
    const DeviceArray<BFloat16> given_x(device(), x);
    const DeviceArray<BFloat16> given_w(device(), w);
    const BlockedShape blocked{spec.feature_blocks, spec.k_blocks};
    const DeviceBuffer packed(blocked.bytes(experts));
    if (gated) {  // gate of all experts, then up of all
      pack_gate_up_blocked(given_w.data(), given_w.data() + experts * columns * depth, experts,
                           depth, columns, packed.data(), stream());
    } else {
      pack_rows_blocked(given_w.data(), experts, features, depth, packed.data(), stream());
    }
    GroupedGemmSm90 gemm(spec, config, device().facts());
    const auto product = [&](const List& list, BFloat16* by_expert, const void* gather_from) {
      const DeviceArray<BFloat16> out(device(), rows * columns);
      gemm.run({.rows = by_expert,
                .gather_from = gather_from,
                .packed_weights = packed.data(),
                .out = out.data(),
                .capacity = rows,
                .row_tiles = list.views(),
                .ticket = list.views().tickets},
               stream());
      std::vector<BFloat16> values = out.download();
      EXPECT_TRUE(out.intact());
      return values;
    };
    const std::vector<BFloat16> got =
        product(List(device(), counts, config.largest_tile), given_x.data(), nullptr);
    if (gated && config.gathers() && rows > 0) {
      // The same rows in another order, and where they go: the kernel gathers them itself.
      std::vector<std::int32_t> to(static_cast<std::size_t>(rows));
      std::iota(to.begin(), to.end(), 0);
      for (std::size_t i = to.size(); i > 1; --i) {
        std::swap(to[i - 1], to[random_bits(78, 0, i) % i]);
      }
      std::vector<BFloat16> by_token(x.size());
      for (std::size_t token = 0; token < to.size(); ++token) {
        std::copy_n(x.begin() + to[token] * depth, depth,
                    by_token.begin() + static_cast<std::int64_t>(token) * depth);
      }
      const DeviceArray<BFloat16> source(device(), by_token);
      const DeviceArray<BFloat16> by_expert(device(), rows * depth);
      const List list(device(), counts, config.largest_tile, to);
      ASSERT_TRUE(product(list, by_expert.data(), source.data()) == got) << "gathered";
      EXPECT_TRUE(by_expert.intact());
      if (largest_tile == kGatheringTile) {
        ASSERT_TRUE(by_expert.download() == x) << "rows gathered";
      }
    }

    const std::vector<float> wide_x = widened(x);
    const std::vector<float> wide_w = widened(w);
    const double rounding = 4 * 0x1p-24 * static_cast<double>(depth);  // of the fp32 sums
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      const float* const gate = wide_w.data() + expert * columns * depth;
      const float* const up = gate + experts * columns * depth;
      for (std::int64_t row = offsets[static_cast<std::size_t>(expert)];
           row < offsets[static_cast<std::size_t>(expert) + 1]; ++row) {
        for (std::int64_t column = 0; column < columns; ++column) {
          const float* const input = wide_x.data() + row * depth;
          double want = dot(input, gate + column * depth, depth);
          double magnitude = 1;
          if (gated) {
            const double u = dot(input, up + column * depth, depth);
            magnitude = std::abs(want) + std::abs(u) + 1;
            want = want / (1 + std::exp(-want)) * u;
          }
          const double is = to_float(got[static_cast<std::size_t>(row * columns + column)]);
          ASSERT_LE(std::abs(is - want), 2 * rounding * magnitude + 0x1p-8 * std::abs(want))
              << "expert " << expert << " row " << row - offsets[static_cast<std::size_t>(expert)]
              << " of " << counts[static_cast<std::size_t>(expert)] << " (routed row " << row
              << ") column " << column << ": " << is << " for " << want;
        }
      }
    }
  }
};

TEST_F(CudaGroupedGemmSm90, ListsTheTilesOfEveryExpert) {
  for (const std::vector<int>& counts : {std::vector<int>{5},
                                         {0},
                                         {0, 1, 0, 16, 17, 0},
                                         {192, 193, 400, 0, 30},
                                         {100000, 3, 0, 77}}) {
    SCOPED_TRACE(testing::PrintToString(counts));
    constexpr int kLargest = 192;
    const List list(device(), counts, kLargest);
    const std::vector<std::int32_t> counters = list.counters.download();
    const std::vector<std::int32_t> words = list.tiles.download();
    const std::vector<std::int32_t> finished = list.finished.download();
    const std::vector<std::int32_t> offsets = offsets_of(counts);
    int expected = 0;
    for (const int count : counts) expected += RowSplit(count, kLargest).tiles;
    ASSERT_EQ(counters[0], expected);
    for (int i = 0; i < RowTiles::kTickets; ++i) EXPECT_EQ(counters[1 + i], 0);
    std::vector<int> seen(counts.size(), 0);  // tiles of each expert so far
    int before = 1 << 30;                     // largest tile of the expert before
    for (int i = 0; i < expected; ++i) {
      const std::int32_t* const tile = words.data() + 4 * i;
      const auto expert = static_cast<std::size_t>(tile[0]);
      ASSERT_LT(expert, counts.size());
      const RowSplit split(counts[expert], kLargest);
      const int nth = seen[expert]++;
      ASSERT_LT(nth, split.tiles);
      EXPECT_EQ(tile[1], offsets[expert] + split.first_row(nth));
      EXPECT_EQ(tile[2], split.tile_rows(nth));
      EXPECT_EQ(tile[3], std::min(split.tile_rows(nth), counts[expert] - split.first_row(nth)));
      EXPECT_EQ(finished[static_cast<std::size_t>(i)], 0);
      EXPECT_LE(split.largest(), before) << "experts with large tiles come first";
      before = split.largest();
    }
    EXPECT_TRUE(list.tiles.intact());
  }
}

TEST_F(CudaGroupedGemmSm90, InvertsThePermutation) {
  constexpr std::int64_t kTopK = 3;
  std::vector<std::int32_t> to(3 * 3333);
  for (std::size_t i = 0; i < to.size(); ++i) {
    to[i] = static_cast<std::int32_t>(i * 7 % to.size());  // 7 divides no 9999
  }
  const List list(device(), {9999, 0}, 192, to, kTopK);
  const std::vector<std::int32_t> got = list.row_to_token.download();
  for (std::size_t i = 0; i < to.size(); ++i) {
    ASSERT_EQ(got[static_cast<std::size_t>(to[i])], static_cast<std::int32_t>(i) / kTopK);
  }
}

TEST_F(CudaGroupedGemmSm90, PacksWeightsInSwizzledBlocks) {
  const std::int64_t experts = 2;
  const std::int64_t intermediate = 70;  // off the block
  const std::int64_t hidden = 75;
  for (const std::int64_t misaligned : {0, 1}) {
    const std::vector<BFloat16> gate = normal(experts * intermediate * hidden, 2);
    const std::vector<BFloat16> up = normal(experts * intermediate * hidden, 3);
    const DeviceArray<BFloat16> given_gate(device(), gate, misaligned);
    const DeviceArray<BFloat16> given_up(device(), up, misaligned);
    const BlockedShape shape = BlockedShape::gate_up(hidden, intermediate);
    ASSERT_EQ(shape.feature_blocks, 2);
    ASSERT_EQ(shape.k_blocks, 2);
    const DeviceArray<BFloat16> packed(device(),
                                       static_cast<std::int64_t>(shape.bytes(experts)) / 2);
    pack_gate_up_blocked(given_gate.data(), given_up.data(), experts, hidden, intermediate,
                         packed.data(), stream());
    const std::vector<BFloat16> got = packed.download();
    EXPECT_TRUE(packed.intact());
    std::size_t at = 0;
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      for (std::int64_t block = 0; block < shape.feature_blocks; ++block) {
        for (std::int64_t k_block = 0; k_block < shape.k_blocks; ++k_block) {
          for (std::int64_t row = 0; row < 128; ++row) {
            for (std::int64_t place = 0; place < 64; ++place, ++at) {
              const std::int64_t feature = block * 64 + row / 16 * 8 + row % 8;
              const std::int64_t k = k_block * 64 + ((place / 8) ^ (row & 7)) * 8 + place % 8;
              const auto& matrix = row % 16 < 8 ? gate : up;
              const float want = feature < intermediate && k < hidden
                                     ? to_float(matrix[static_cast<std::size_t>(
                                           (expert * intermediate + feature) * hidden + k)])
                                     : 0.0F;
              ASSERT_EQ(to_float(got[at]), want)
                  << "expert " << expert << " block " << block << " k block " << k_block << " row "
                  << row << " place " << place;
            }
          }
        }
      }
    }
  }
}

TEST_F(CudaGroupedGemmSm90, OneTileOfEverySize) {
  for (int rows = 1; rows <= kCooperativeTile + 1; rows += rows % 16 == 1 ? 15 : 1) {
    check(GemmEpilogue::kStore, {rows}, 256, 192);
    check(GemmEpilogue::kSwiGLU, {rows}, 256, 192);
    if (HasFatalFailure()) return;
  }
}

TEST_F(CudaGroupedGemmSm90, ReductionsShorterAndLongerThanTheRing) {
  for (const std::int64_t depth : {64, 128, 256, 320, 384, 704}) {
    check(GemmEpilogue::kStore, {70, 33, 200}, 512, depth);
    check(GemmEpilogue::kSwiGLU, {70, 33, 200}, 512, depth);
    if (HasFatalFailure()) return;
  }
}

TEST_F(CudaGroupedGemmSm90, FeaturesOffTheBlockAndThePair) {
  for (const std::int64_t features : {64, 128, 192, 320, 384, 704}) {
    check(GemmEpilogue::kStore, {130, 5, 16, 200}, features, 128);
    if (features % 128 == 0) check(GemmEpilogue::kSwiGLU, {130, 5, 16, 200}, features, 128);
    if (HasFatalFailure()) return;
  }
}

TEST_F(CudaGroupedGemmSm90, ManyExpertsWithManyRowCounts) {
  std::vector<int> counts;
  for (int i = 0; i < 90; ++i) counts.push_back(i % 7 == 0 ? 0 : (i * 37) % 61);
  for (const int rows : {0, 1, 15, 16, 17, 191, 192, 193, 207, 208, 320, 385, 0})
    counts.push_back(rows);
  check(GemmEpilogue::kStore, counts, 384, 192);
  check(GemmEpilogue::kSwiGLU, counts, 384, 192);
}

TEST_F(CudaGroupedGemmSm90, MoreTilesThanClusters) {
  check(GemmEpilogue::kStore, {3000, 1, 1500}, 640, 64);
  check(GemmEpilogue::kSwiGLU, {3000, 1, 1500}, 640, 64);
}

TEST_F(CudaGroupedGemmSm90, ProductsBesideEachOtherGiveTheBitsOfProductsInTurn) {
  std::vector<int> counts;
  for (int i = 0; i < 70; ++i) counts.push_back((i * 61) % 330);
  for (const std::int64_t inner : {64, 192}) {  // 1 and 3 feature blocks
    const ChainInputs inputs = chain_inputs(counts, 256, inner);
    for (const int largest_tile : {kGatheringTile, kDeepTile, kCooperativeTile}) {
      SCOPED_TRACE(testing::Message() << "tiles of " << largest_tile << " inner " << inner);
      const Chain in_turn = chain(inputs, largest_tile, false);
      for (const int finished : in_turn.finished) ASSERT_EQ(finished, 0);
      for (int repeat = 0; repeat < 5; ++repeat) {
        const Chain beside = chain(inputs, largest_tile, true);
        ASSERT_GT(beside.announcements, 0);
        for (const int finished : beside.finished) ASSERT_EQ(finished, beside.announcements);
        ASSERT_TRUE(beside.out == in_turn.out);
      }
    }
  }
}

TEST_F(CudaGroupedGemmSm90, NoRows) {
  check(GemmEpilogue::kStore, {0, 0}, 128, 64);
}

}  // namespace
}  // namespace moe::cuda
