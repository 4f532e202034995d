// The AMX tile's addresses, tile configuration and epilogues, with the tile instructions emulated:
// most machines that run the tests have none. test_gemm_tile.cpp runs the real ones where they exist.
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "cpu/isa/vector_scalar_impl.h"
// The templates below use the Vector above.
#include "cpu/isa/gemm_amx_impl.h"
#include "cpu/isa/gemm_checks.h"

namespace moe::cpu {
namespace {

/// Eight tiles of up to 16 rows of 64 bytes, as ldtilecfg shapes them (Intel SDM vol. 1, 18.3).
struct EmulatedTiles {
  using Tile = std::array<std::array<char, 64>, 16>;
  inline static AmxConfig config;
  inline static bool configured = false;
  inline static std::array<Tile, 8> tiles{};

  static void configure(const AmxConfig& wanted) {
    ASSERT_EQ(wanted.palette, 1);
    ASSERT_EQ(wanted.start_row, 0);
    for (int tile = 0; tile < 16; ++tile) {
      // Zero rows or zero bytes make every use of the tile fault; more do not fit it.
      ASSERT_LE(wanted.rows[tile], 16);
      ASSERT_LE(wanted.row_bytes[tile], 64);
      ASSERT_EQ(wanted.rows[tile] == 0, wanted.row_bytes[tile] == 0);
    }
    config = wanted;
    configured = true;
  }
  static void release() { configured = false; }
  template <int kTile>
  static void zero() {
    ASSERT_TRUE(configured);
    tiles[kTile] = Tile{};
  }
  template <int kTile>
  static void load(const void* from, std::int64_t stride) {
    ASSERT_TRUE(configured);
    tiles[kTile] = Tile{};
    for (int row = 0; row < config.rows[kTile]; ++row) {
      std::memcpy(tiles[kTile][static_cast<std::size_t>(row)].data(),
                  static_cast<const char*>(from) + row * stride, config.row_bytes[kTile]);
    }
  }
  template <int kTile>
  static void store(void* to, std::int64_t stride) {
    ASSERT_TRUE(configured);
    for (int row = 0; row < config.rows[kTile]; ++row) {
      std::memcpy(static_cast<char*>(to) + row * stride,
                  tiles[kTile][static_cast<std::size_t>(row)].data(), config.row_bytes[kTile]);
    }
  }
  template <class Element>
  static Element get(int tile, int row, int column) {
    Element value;
    std::memcpy(&value,
                tiles[static_cast<std::size_t>(tile)][static_cast<std::size_t>(row)].data() +
                    column * static_cast<int>(sizeof(Element)),
                sizeof(Element));
    return value;
  }
  template <int kSums, int kA, int kB>
  static void multiply() {
    ASSERT_TRUE(configured);
    ASSERT_EQ(config.rows[kSums], config.rows[kA]);
    ASSERT_EQ(config.row_bytes[kA] / 4, config.rows[kB]);
    for (int row = 0; row < config.rows[kSums]; ++row) {
      for (int column = 0; column < config.row_bytes[kSums] / 4; ++column) {
        float sum = get<float>(kSums, row, column);
        for (int pair = 0; pair < config.rows[kB]; ++pair) {
          for (int half = 0; half < 2; ++half) {
            sum += to_float(get<BFloat16>(kA, row, 2 * pair + half)) *
                   to_float(get<BFloat16>(kB, pair, 2 * column + half));
          }
        }
        std::memcpy(tiles[kSums][static_cast<std::size_t>(row)].data() + column * 4, &sum, 4);
      }
    }
  }
};

constexpr TileShape kShapes[] = {{static_cast<int>(2 * kAmxTileRows), 1}};
constexpr GemmKernels kEmulated = {
    .row_layout = RowLayout::kRows,
    .lanes = kAmxLanes,
    .depth_multiple = kAmxDepth,
    .depth_step = kAmxDepth,
    .shapes = kShapes,
    .shape_count = 1,
    .tile = [](TileShape, int, int) -> TileFunction { return amx_tile<EmulatedTiles>; }};

class AmxTile : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Rows, AmxTile, testing::Values(1, 2, 15, 16, 17, 31, 32));

TEST_P(AmxTile, StoresTheProductInsideItsColumnsOnly) {
  for (const std::int64_t depth : {1, 32, 67, 96}) {
    const GemmCase gemm(kEmulated, DType::kBF16, GetParam(), 1, depth);
    for (const std::int64_t columns : {1, 15, 17, 32}) {
      expect_store(kEmulated, amx_tile<EmulatedTiles>, DType::kBF16, gemm, columns, gemm.padded);
    }
  }
  EXPECT_FALSE(EmulatedTiles::configured) << "tile state left behind";
}

TEST_P(AmxTile, ChunksOfTheDepthAddUp) {
  const GemmCase gemm(kEmulated, DType::kBF16, GetParam(), 1, 5 * kAmxDepth);
  for (const std::int64_t chunk : {1, 2, 3}) {
    expect_store(kEmulated, amx_tile<EmulatedTiles>, DType::kBF16, gemm, gemm.columns,
                 chunk * kAmxDepth);
  }
}

TEST_P(AmxTile, AddsBiasesAndScalesRows) {
  const GemmCase gemm(kEmulated, DType::kBF16, GetParam(), 1, 3 * kAmxDepth);
  for (const std::int64_t chunk : {1, 2, 3}) {
    expect_adjusted_store(kEmulated, amx_tile<EmulatedTiles>, DType::kBF16, gemm,
                          chunk * kAmxDepth);
  }
}

TEST_P(AmxTile, SwiGluWritesTheBlockOfTheNextProduct) {
  const GemmCase gemm(kEmulated, DType::kBF16, GetParam(), 1, 40);
  expect_swiglu(kEmulated, amx_tile<EmulatedTiles>, DType::kBF16, gemm);
}

}  // namespace
}  // namespace moe::cpu
