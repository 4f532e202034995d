// Weights in the swizzled blocks of our grouped GEMM, element by element.
#include <algorithm>

#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/normal_values.h"
#include "cuda/ops/pack_blocked.h"

namespace moe::cuda {
namespace {

class CudaPackBlocked : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped() && device().facts().major != 9) GTEST_SKIP() << "kernels for sm_90a only";
  }
};

TEST_F(CudaPackBlocked, PacksWeightsInSwizzledBlocks) {
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
                         {.data = packed.data(), .experts = experts}, stream());
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

TEST_F(CudaPackBlocked, PacksAPartOfAnExpert) {
  constexpr std::int64_t kFeatures = 70;
  constexpr std::int64_t kDepth = 100;
  constexpr std::int64_t kStride = 131;  // of a larger matrix
  const std::vector<BFloat16> whole = normal(kFeatures * kStride, 4);
  const auto cut = [&](const std::vector<BFloat16>& from) {
    std::vector<BFloat16> rows;
    for (std::int64_t row = 0; row < kFeatures; ++row) {
      rows.insert(rows.end(), from.begin() + row * kStride, from.begin() + row * kStride + kDepth);
    }
    return rows;
  };
  const std::vector<BFloat16> other = normal(kFeatures * kStride, 5);
  const DeviceArray<BFloat16> given(device(), whole);
  const DeviceArray<BFloat16> given_gate(device(), other);
  const DeviceArray<BFloat16> rows(device(), cut(whole));
  const DeviceArray<BFloat16> gate(device(), cut(other));
  for (const bool pairs : {false, true}) {
    // Room for one block more in either direction than the part fills.
    const BlockedShape tight =
        pairs ? BlockedShape::gate_up(kDepth, kFeatures) : BlockedShape::up(kDepth, kFeatures);
    const BlockedShape shape{tight.feature_blocks + 1, tight.k_blocks + 1};
    const DeviceArray<BFloat16> packed(device(), static_cast<std::int64_t>(shape.bytes(1)) / 2);
    const DeviceArray<BFloat16> alone(device(), static_cast<std::int64_t>(tight.bytes(1)) / 2);
    const PackedWeights to_alone{.data = alone.data(), .experts = 1};
    pack_part_blocked({.gate = pairs ? given_gate.data() : nullptr,
                       .rows = given.data(),
                       .features = kFeatures,
                       .depth = kDepth,
                       .stride = kStride},
                      0, shape, {.data = packed.data(), .experts = 1}, stream());
    if (pairs) {
      pack_gate_up_blocked(gate.data(), rows.data(), 1, kDepth, kFeatures, to_alone, stream());
    } else {
      pack_rows_blocked(rows.data(), 1, kFeatures, kDepth, to_alone, stream());
    }
    const std::vector<BFloat16> got = packed.download();
    const std::vector<BFloat16> want = alone.download();
    EXPECT_TRUE(packed.intact());
    constexpr std::int64_t kElements = kBlockBytes / 2;
    for (std::int64_t block = 0; block < shape.feature_blocks; ++block) {
      for (std::int64_t k = 0; k < shape.k_blocks; ++k) {
        const auto at = got.begin() + (block * shape.k_blocks + k) * kElements;
        if (block < tight.feature_blocks && k < tight.k_blocks) {
          ASSERT_TRUE(std::equal(at, at + kElements,
                                 want.begin() + (block * tight.k_blocks + k) * kElements));
        } else {
          ASSERT_TRUE(std::all_of(at, at + kElements, [](BFloat16 v) { return to_float(v) == 0; }));
        }
      }
    }
  }
}

// Blocks of 2 MiB pages of which the first and the third have their bit set: in each unit one block of even pairs of
// feature blocks and one of odd pairs, and those of no four blocks behind all units. The same by whole matrices and, expert
// by expert, by parts.
TEST_F(CudaPackBlocked, LaysBlocksWhereTheirHalfOfL2Is) {
  constexpr std::int64_t kExperts = 3;
  constexpr int kFeatureBlocks = 6;
  constexpr int kDepthBlocks = 23;
  constexpr std::int64_t kFeatures = kFeatureBlocks * kBlockFeatures;
  constexpr std::int64_t kDepth = kDepthBlocks * kBlockDepth;
  constexpr std::int64_t kElements = kBlockBytes / 2;
  constexpr std::int64_t kPiece = L2Homes::kPieceBytes / 2;
  const BlockedShape shape{kFeatureBlocks, kDepthBlocks};
  const std::vector<BFloat16> given = normal(kExperts * kFeatures * kDepth, 6);
  const DeviceArray<BFloat16> weights(device(), given);
  const auto count = static_cast<std::int64_t>(shape.bytes(kExperts)) / 2;
  const DeviceArray<BFloat16> plain(device(), count);
  const DeviceArray<BFloat16> placed(device(), count);
  const DeviceArray<BFloat16> by_parts(device(), count);
  std::vector<std::uint32_t> words(l2_page_words(shape.bytes(kExperts)), 0);
  ASSERT_EQ(words.size(), 3U);
  words[0] = 0b101;
  const DeviceArray<std::uint32_t> pages(device(), words);
  const L2Homes homes{.mask = 0b10101, .pages = pages.data()};
  pack_rows_blocked(weights.data(), kExperts, kFeatures, kDepth, {plain.data(), kExperts, {}},
                    stream());
  pack_rows_blocked(weights.data(), kExperts, kFeatures, kDepth, {placed.data(), kExperts, homes},
                    stream());
  for (std::int64_t expert = 0; expert < kExperts; ++expert) {
    pack_part_blocked({.rows = weights.data() + expert * kFeatures * kDepth,
                       .features = kFeatures,
                       .depth = kDepth,
                       .stride = kDepth},
                      expert, shape, {by_parts.data(), kExperts, homes}, stream());
  }
  const std::vector<BFloat16> blocks = plain.download();
  const std::vector<BFloat16> got = placed.download();
  EXPECT_TRUE(placed.intact());
  EXPECT_TRUE(by_parts.download() == got);
  const std::int64_t units = units_of(shape, kExperts, true);
  ASSERT_EQ(units, kExperts * 2 * kDepthBlocks);
  for (std::int64_t expert = 0; expert < kExperts; ++expert) {
    for (int block = 0; block < kFeatureBlocks; ++block) {
      for (int k = 0; k < kDepthBlocks; ++k) {
        for (std::int64_t piece = 0; piece < 4; ++piece) {
          std::int64_t at = 0;  // of the piece
          if (block < 4) {
            const std::int64_t unit = (expert * 2 + block % 2) * kDepthBlocks + k;
            int home = unit / 64 % 2 == 0 ? 1 : 0;  // of the unit's first piece
            for (const int bit : {0, 2, 4}) home ^= static_cast<int>(unit >> bit & 1);
            // Pieces of either half in ascending order.
            std::vector<std::int64_t> mine;
            for (std::int64_t i = 0; i < 8; ++i) {
              const auto of_piece = static_cast<int>((i ^ i >> 1) & 1);
              if ((home ^ of_piece) == block / 2) mine.push_back(i);
            }
            ASSERT_EQ(mine.size(), 4U);
            at = unit * 8 + mine[static_cast<std::size_t>(piece)];
          } else {
            at = units * 8 + ((expert * 2 + block - 4) * kDepthBlocks + k) * 4 + piece;
          }
          const auto want = blocks.begin() +
                            ((expert * kFeatureBlocks + block) * kDepthBlocks + k) * kElements +
                            piece * kPiece;
          ASSERT_TRUE(std::equal(want, want + kPiece, got.begin() + at * kPiece))
              << "expert " << expert << " feature block " << block << " k block " << k << " piece "
              << piece;
        }
      }
    }
  }
}

}  // namespace
}  // namespace moe::cuda
