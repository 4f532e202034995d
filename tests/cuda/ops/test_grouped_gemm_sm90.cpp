// Our grouped GEMM for sm_90a, against loops on the host.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/normal_values.h"
#include "cuda/ops/grouped_gemm_sm90.h"
#include "cuda/ops/pack_blocked.h"
#include "cuda/ops/row_tile_list.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {
namespace {

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

/// Where weights lie, and in which order tiles are taken; results do not depend on it.
struct Order {
  bool placed = false;     // by homes that are made up
  bool in_halves = false;  // by_partition
  int tiles_together = 0;  // 0: the rule's
};

class CudaGroupedGemmSm90 : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped() && device().facts().major != 9) GTEST_SKIP() << "kernels for sm_90a only";
  }

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
  /// Some bits, as if pages had been measured. No kernel knows where they are.
  L2Homes made_up_homes(std::uint64_t bytes) {
    std::vector<std::uint32_t> words(l2_page_words(bytes));
    for (std::size_t i = 0; i < words.size(); ++i) {
      words[i] = static_cast<std::uint32_t>(random_bits(80, 0, i));
    }
    pages_.emplace_back(device(), words);
    return {.mask = 0b101011, .pages = pages_.back().data()};
  }
  static GroupedGemmConfig ordered(GroupedGemmConfig config, const Order& order) {
    config.by_partition = order.in_halves;
    if (order.tiles_together > 0) config.tiles_together = order.tiles_together;
    return config;
  }
  Chain chain(const ChainInputs& in, int largest_tile, bool beside, const Order& order = {}) {
    const auto experts = static_cast<std::int64_t>(in.counts.size());
    const std::int64_t rows = offsets_of(in.counts).back();
    const std::int64_t depth = in.depth;
    const std::int64_t inner = in.inner;
    const BlockedShape first = BlockedShape::gate_up(depth, inner);
    const BlockedShape second = BlockedShape::down(depth, inner);
    const DeviceBuffer packed_gate_up(first.bytes(experts));
    const DeviceBuffer packed_down(second.bytes(experts));
    const auto packed = [&](const DeviceBuffer& memory) {
      const L2Homes homes = order.placed ? made_up_homes(memory.size()) : L2Homes{};
      return PackedWeights{memory.data(), experts, homes};
    };
    const PackedWeights to_gate_up = packed(packed_gate_up);
    const PackedWeights to_down = packed(packed_down);
    pack_gate_up_blocked(in.gate_up.data(), in.gate_up.data() + experts * inner * depth, experts,
                         depth, inner, to_gate_up, stream());
    pack_rows_blocked(in.down.data(), experts, depth, inner, to_down, stream());
    const auto gemm = [&](GemmEpilogue epilogue, const BlockedShape& shape, std::int64_t columns) {
      const GroupedGemmSpec spec{.epilogue = epilogue,
                                 .experts = experts,
                                 .feature_blocks = shape.feature_blocks,
                                 .k_blocks = shape.k_blocks,
                                 .out_columns = columns};
      const GroupedGemmConfig config =
          choose_grouped_gemm(spec, rows, largest_tile, device().facts());
      return GroupedGemmSm90(spec, ordered(config, order), device().facts());
    };
    GroupedGemmSm90 one = gemm(GemmEpilogue::kSwiGLU, first, inner);
    GroupedGemmSm90 two = gemm(GemmEpilogue::kStore, second, depth);
    const DeviceArray<BFloat16> act(device(), rows * inner);
    const DeviceArray<BFloat16> out(device(), rows * depth);
    const RowTileList list(device(), in.counts, largest_tile);
    one.run({.rows = in.x.data(),
             .packed_weights = to_gate_up.data,
             .weight_homes = to_gate_up.homes,
             .out = act.data(),
             .capacity = rows,
             .row_tiles = list.views(),
             .tickets = list.views().tickets,
             .announces = beside},
            stream());
    two.run({.rows = act.data(),
             .packed_weights = to_down.data,
             .weight_homes = to_down.homes,
             .out = out.data(),
             .capacity = rows,
             .row_tiles = list.views(),
             .tickets = list.views().tickets + RowTiles::kTicketsOfProduct,
             .rows_of_previous = true,
             .awaits = beside ? one.announcements() : 0},
            stream());
    Chain result{out.download(), list.finished.download(), one.announcements()};
    result.finished.resize(static_cast<std::size_t>(list.counters.download()[0]));
    EXPECT_TRUE(act.intact() && out.intact());
    return result;
  }

  /// What a product does beyond multiplying.
  struct Kind {
    GemmEpilogue epilogue;
    Activation activation = {};
    bool bias = false;
  };
  static std::vector<Kind> every_kind() {
    Activation clamped;  // gpt-oss; a limit that some sums exceed
    clamped.alpha = 1.702F;
    clamped.limit = 2;
    clamped.up_offset = 1;
    Activation geglu;
    geglu.kind = Activation::Kind::kGeGLU;
    Activation relu2;
    relu2.kind = Activation::Kind::kReLU2;
    return {{GemmEpilogue::kStore},
            {GemmEpilogue::kStoreBias, {}, true},
            {GemmEpilogue::kSwiGLU},
            {GemmEpilogue::kGated, clamped, true},
            {GemmEpilogue::kGated, {}, true},
            {GemmEpilogue::kGated, geglu, false},
            {GemmEpilogue::kReLU2, relu2, true},
            {GemmEpilogue::kReLU2, relu2, false}};
  }
  /// In double precision, and how much an error of gate and up by one may change it.
  struct Activated {
    double value;
    double slope;
  };
  static Activated activated(const Kind& kind, double gate, double up) {
    switch (kind.epilogue) {
      case GemmEpilogue::kStore:
      case GemmEpilogue::kStoreBias:
        return {up, 1};
      case GemmEpilogue::kReLU2:
        return {up > 0 ? up * up : 0, 1 + 2 * std::abs(up)};
      case GemmEpilogue::kSwiGLU:
      case GemmEpilogue::kGated:
        break;
    }
    const Activation& activation = kind.activation;
    const double slope = 2 * (1 + std::abs(gate) + std::abs(up));
    if (activation.kind == Activation::Kind::kGeGLU) {
      const double v = std::sqrt(2 / 3.14159265358979) * (gate + 0.044715 * gate * gate * gate);
      return {gate / 2 * (1 + std::tanh(v)) * up, slope};
    }
    const double limit = activation.limit;
    const double g = std::min(gate, limit);
    const double u = std::clamp(up, -limit, limit) + activation.up_offset;
    return {g / (1 + std::exp(-activation.alpha * g)) * u, slope};
  }

  /// Rows per expert and what is multiplied with them; `sums` [rows, features] as the host makes them.
  struct Inputs {
    std::vector<int> counts;
    std::int64_t features = 0;
    std::int64_t depth = 0;
    std::vector<BFloat16> x = {};    // [rows, depth]
    std::vector<BFloat16> w = {};    // [experts, features, depth]
    std::vector<float> biases = {};  // [experts, features]
    std::vector<double> sums = {};   // without biases
  };
  static Inputs inputs_of(const std::vector<int>& counts, std::int64_t features,
                          std::int64_t depth) {
    Inputs in{counts, features, depth};
    const auto experts = static_cast<std::int64_t>(counts.size());
    in.x = normal(offsets_of(counts).back() * depth, 0);
    // Scaled up, so that sums lie where silu is curved and where it is not.
    in.w = normal(experts * features * depth, 1, 2 / std::sqrt(static_cast<double>(depth)));
    for (std::int64_t i = 0; i < experts * features; ++i) {
      in.biases.push_back(static_cast<float>(random_normal(79, 0, static_cast<std::uint64_t>(i))));
    }
    const std::vector<float> wide_x = widened(in.x);
    const std::vector<float> wide_w = widened(in.w);
    const float* input = wide_x.data();
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      for (int row = 0; row < counts[static_cast<std::size_t>(expert)]; ++row, input += depth) {
        for (std::int64_t feature = 0; feature < features; ++feature) {
          in.sums.push_back(
              dot(input, wide_w.data() + (expert * features + feature) * depth, depth));
        }
      }
    }
    return in;
  }
  /// The first or second half of every expert's values.
  template <class Element>
  static std::vector<Element> half_of(const std::vector<Element>& values, std::int64_t experts,
                                      std::int64_t half) {
    const auto each = static_cast<std::int64_t>(values.size()) / experts;
    std::vector<Element> cut;
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      const auto from = values.begin() + expert * each + half * (each / 2);
      cut.insert(cut.end(), from, from + each / 2);
    }
    return cut;
  }

  std::vector<DeviceArray<std::uint32_t>> pages_;

  static bool cooperates(std::int64_t depth) {
    return blocks_of(depth, kBlockDepth) >= kFewestCooperativeSteps;
  }

  /// These rows per expert, with every epilogue and tile size. With pairs the first half of the features are
  /// gate's, the second up's.
  void check(const std::vector<int>& counts, std::int64_t features, std::int64_t depth) {
    const Inputs in = inputs_of(counts, features, depth);
    for (const Kind& kind : every_kind()) {
      if (has_pairs(kind.epilogue) && features % 128 != 0) continue;
      for (const int largest_tile : {kGatheringTile, kDeepTile, kCooperativeTile}) {
        if (largest_tile == kCooperativeTile && !cooperates(depth)) continue;
        for (const bool gathers : {false, true}) {
          // Only of this size there is a kernel of its own for either.
          if (gathers ? !activates(kind.epilogue)
                      : activates(kind.epilogue) && largest_tile != kDeepTile)
            continue;
          check(kind, in, largest_tile, gathers);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
  void check(const Kind& kind, const Inputs& in, int largest_tile, bool gathers) {
    const GemmEpilogue epilogue = kind.epilogue;
    const bool gated = has_pairs(epilogue);
    const std::int64_t depth = in.depth;
    SCOPED_TRACE(testing::Message()
                 << "epilogue " << static_cast<int>(epilogue) << ' ' << to_string(kind.activation)
                 << (kind.bias ? " with biases" : "") << " features " << in.features << " depth "
                 << depth << " tiles of " << largest_tile
                 << (gathers ? " that gather, rows " : ", rows ")
                 << testing::PrintToString(in.counts));
    const auto experts = static_cast<std::int64_t>(in.counts.size());
    const std::vector<std::int32_t> offsets = offsets_of(in.counts);
    const std::int64_t rows = offsets.back();
    const std::int64_t columns = gated ? in.features / 2 : in.features;  // of the output
    const GroupedGemmSpec spec{.epilogue = epilogue,
                               .experts = experts,
                               .feature_blocks = blocks_of(in.features, kBlockFeatures),
                               .k_blocks = blocks_of(depth, kBlockDepth),
                               .out_columns = columns,
                               .activation = ActivationStep::of(kind.activation)};
    GroupedGemmConfig config = choose_grouped_gemm(spec, rows, largest_tile, device().facts());
    config.gathers = gathers;
    const DeviceArray<BFloat16> given_x(device(), in.x);
    const BlockedShape blocked{spec.feature_blocks, spec.k_blocks};
    const DeviceBuffer plain(blocked.bytes(experts));
    const DeviceBuffer placed(blocked.bytes(experts));
    const PackedWeights packed[2] = {{plain.data(), experts, {}},
                                     {placed.data(), experts, made_up_homes(placed.size())}};
    const DeviceArray<float> packed_bias(device(), experts * spec.feature_blocks * kBlockFeatures);
    if (gated) {
      const DeviceArray<BFloat16> gate(device(), half_of(in.w, experts, 0));
      const DeviceArray<BFloat16> up(device(), half_of(in.w, experts, 1));
      const DeviceArray<float> gate_bias(device(), half_of(in.biases, experts, 0));
      const DeviceArray<float> up_bias(device(), half_of(in.biases, experts, 1));
      for (const PackedWeights& to : packed) {
        pack_gate_up_blocked(gate.data(), up.data(), experts, depth, columns, to, stream());
      }
      pack_bias_blocked(gate_bias.data(), up_bias.data(), experts, columns, spec.feature_blocks,
                        packed_bias.data(), stream());
      device().synchronise();
    } else {
      const DeviceArray<BFloat16> weights(device(), in.w);
      const DeviceArray<float> biases(device(), in.biases);
      for (const PackedWeights& to : packed) {
        pack_rows_blocked(weights.data(), experts, columns, depth, to, stream());
      }
      pack_bias_blocked(nullptr, biases.data(), experts, columns, spec.feature_blocks,
                        packed_bias.data(), stream());
      device().synchronise();
    }
    EXPECT_TRUE(packed_bias.intact());
    const auto product = [&](const Order& order, const RowTileList& list, BFloat16* by_expert,
                             const void* gather_from) {
      const DeviceArray<BFloat16> out(device(), rows * columns);
      GroupedGemmSm90 gemm(spec, ordered(config, order), device().facts());
      gemm.run({.rows = by_expert,
                .gather_from = gather_from,
                .packed_weights = packed[order.placed ? 1 : 0].data,
                .weight_homes = packed[order.placed ? 1 : 0].homes,
                .packed_bias = kind.bias ? packed_bias.data() : nullptr,
                .out = out.data(),
                .capacity = rows,
                .row_tiles = list.views(),
                .tickets = list.views().tickets},
               stream());
      std::vector<BFloat16> values = out.download();
      EXPECT_TRUE(out.intact());
      return values;
    };
    const auto list_tiles = [&] { return RowTileList(device(), in.counts, config.largest_tile); };
    const std::vector<BFloat16> got = product({}, list_tiles(), given_x.data(), nullptr);
    const Order in_halves{.placed = true, .in_halves = true, .tiles_together = 2};
    for (const Order& order : {in_halves, Order{.placed = true, .tiles_together = 1},
                               Order{.in_halves = true, .tiles_together = 3}}) {
      ASSERT_TRUE(product(order, list_tiles(), given_x.data(), nullptr) == got)
          << "placed " << order.placed << " in halves " << order.in_halves << ' '
          << order.tiles_together << " tiles together";
    }
    if (gathers && rows > 0) {
      // The same rows in another order, and where they go: the kernel gathers them itself.
      std::vector<std::int32_t> to(static_cast<std::size_t>(rows));
      std::iota(to.begin(), to.end(), 0);
      for (std::size_t i = to.size(); i > 1; --i) {
        std::swap(to[i - 1], to[random_bits(78, 0, i) % i]);
      }
      std::vector<BFloat16> by_token(in.x.size());
      for (std::size_t token = 0; token < to.size(); ++token) {
        std::copy_n(in.x.begin() + to[token] * depth, depth,
                    by_token.begin() + static_cast<std::int64_t>(token) * depth);
      }
      const DeviceArray<BFloat16> source(device(), by_token);
      for (const Order& order : {Order{}, in_halves}) {
        const DeviceArray<BFloat16> by_expert(device(), rows * depth);
        const RowTileList list(device(), in.counts, config.largest_tile, to);
        ASSERT_TRUE(product(order, list, by_expert.data(), source.data()) == got) << "gathered";
        EXPECT_TRUE(by_expert.intact());
        if (!config.cooperative()) {
          ASSERT_TRUE(by_expert.download() == in.x) << "rows gathered";
        }
      }
    }

    const double rounding = 4 * 0x1p-24 * static_cast<double>(depth);  // of the fp32 sums
    std::int64_t row = 0;
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      for (; row < offsets[static_cast<std::size_t>(expert) + 1]; ++row) {
        for (std::int64_t column = 0; column < columns; ++column) {
          const auto sum = [&](std::int64_t feature) {
            return in.sums[static_cast<std::size_t>(row * in.features + feature)] +
                   (kind.bias ? in.biases[static_cast<std::size_t>(expert * in.features + feature)]
                              : 0);
          };
          const auto [want, slope] =
              activated(kind, gated ? sum(column) : 0, sum(gated ? columns + column : column));
          const double is = to_float(got[static_cast<std::size_t>(row * columns + column)]);
          ASSERT_LE(std::abs(is - want), rounding * slope + 0x1p-8 * std::abs(want))
              << "expert " << expert << " row " << row - offsets[static_cast<std::size_t>(expert)]
              << " of " << in.counts[static_cast<std::size_t>(expert)] << " (routed row " << row
              << ") column " << column << ": " << is << " for " << want;
        }
      }
    }
  }
};

TEST_F(CudaGroupedGemmSm90, OneTileOfEverySize) {
  for (int rows = 1; rows <= kCooperativeTile + 1; rows += rows % 16 == 1 ? 15 : 1) {
    check({rows}, 640, 192);
    if (HasFatalFailure()) return;
  }
}

TEST_F(CudaGroupedGemmSm90, ReductionsShorterAndLongerThanTheRing) {
  for (const std::int64_t depth : {64, 128, 256, 320, 384, 704}) {
    check({70, 33, 200}, 512, depth);
    if (HasFatalFailure()) return;
  }
}

TEST_F(CudaGroupedGemmSm90, FeaturesOffTheBlockAndThePair) {
  for (const std::int64_t features : {64, 128, 192, 320, 384, 704}) {
    check({130, 5, 16, 200}, features, 192);
    if (HasFatalFailure()) return;
  }
}

TEST_F(CudaGroupedGemmSm90, ManyExpertsWithManyRowCounts) {
  std::vector<int> counts;
  for (int i = 0; i < 90; ++i) counts.push_back(i % 7 == 0 ? 0 : (i * 37) % 61);
  for (const int rows : {0, 1, 15, 16, 17, 191, 192, 193, 207, 208, 320, 385, 0})
    counts.push_back(rows);
  check(counts, 384, 192);
}

TEST_F(CudaGroupedGemmSm90, MoreTilesThanClusters) {
  check({3000, 1, 1500}, 640, 64);
  check({3000, 1, 1500}, 640, 256);
}

TEST_F(CudaGroupedGemmSm90, ProductsBesideEachOtherGiveTheBitsOfProductsInTurn) {
  std::vector<int> counts;
  for (int i = 0; i < 70; ++i) counts.push_back((i * 61) % 330);
  for (const std::int64_t inner : {64, 192, 320}) {  // 1, 3 and 5 feature blocks
    const ChainInputs inputs = chain_inputs(counts, 256, inner);
    for (const int largest_tile : {kGatheringTile, kDeepTile, kCooperativeTile}) {
      if (largest_tile == kCooperativeTile && !cooperates(inner)) continue;
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

// Items that are longer than the draw of a ticket, several rounds of them, and weights of many pages: experts of many
// tiles, of some, of one, light ones.
TEST_F(CudaGroupedGemmSm90, OrdersAndPlacesOfWeightsDoNotChangeABit) {
  const ChainInputs inputs =
      chain_inputs({2500, 0, 1000, 700, 5, 385, 90, 1500, 30, 192, 1, 1100}, 1280, 704);
  for (const int largest_tile : {kGatheringTile, kDeepTile, kCooperativeTile}) {
    const Chain plain = chain(inputs, largest_tile, false, {.tiles_together = 1});
    for (const Order& order : {Order{.placed = true, .in_halves = true, .tiles_together = 2},
                               Order{.placed = true, .in_halves = true, .tiles_together = 64},
                               Order{.placed = true, .tiles_together = 3},
                               Order{.in_halves = true, .tiles_together = 1}}) {
      for (const bool beside : {false, true}) {
        SCOPED_TRACE(testing::Message() << "tiles of " << largest_tile << " placed " << order.placed
                                        << " in halves " << order.in_halves << ' '
                                        << order.tiles_together << " together beside " << beside);
        const Chain got = chain(inputs, largest_tile, beside, order);
        ASSERT_TRUE(got.out == plain.out);
        for (const int finished : got.finished) {
          ASSERT_EQ(finished, beside ? got.announcements : 0);
        }
      }
    }
  }
}

// A reduction of more pages of units than are looked up at once.
TEST_F(CudaGroupedGemmSm90, ReductionsOfManyPages) {
  const std::int64_t depth = 33 * L2Homes::kUnitsOfPage * kBlockDepth;
  const Inputs in = inputs_of({3}, 512, depth);
  for (const int largest_tile : {kGatheringTile, kCooperativeTile}) {
    check(Kind{GemmEpilogue::kStore}, in, largest_tile, false);
  }
}

// More units of rows than there are blocks, each row of which is 2048 bytes and 128 more: every piece of memory of
// those who gather is used, for a block's first rows and for later ones.
TEST_F(CudaGroupedGemmSm90, GathersRowsOfSeveralPieces) {
  check({1300, 5, 1290}, 128, 1088);
}

TEST_F(CudaGroupedGemmSm90, NoRows) {
  check({0, 0}, 128, 192);
}

}  // namespace
}  // namespace moe::cuda
