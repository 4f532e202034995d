#include "cpu/ops/packed_experts.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/scalar.h"
#include "core/workload.h"

namespace moe::cpu {
namespace {

TEST(Panels, CoverAllColumnsOnceWithinTheLimit) {
  for (const std::int64_t columns : {1, 63, 64, 65, 768, 1000, 2048, 14336}) {
    for (const std::int64_t limit : {0, 64, 100, 512, 4096}) {
      for (const std::int64_t sharers : {1, 2, 3, 16}) {
        const Panels panels = Panels::split(columns, limit, sharers);
        const std::string what = std::to_string(columns) + " columns, limit " +
                                 std::to_string(limit) + ", sharers " + std::to_string(sharers);
        std::int64_t covered = 0;
        for (std::int64_t panel = 0; panel < panels.count(); ++panel) {
          ASSERT_EQ(panels.first(panel), covered) << what;
          ASSERT_GE(panels.width_of(panel), 1) << what;
          ASSERT_LE(panels.width_of(panel), std::max<std::int64_t>(limit, 64)) << what;
          covered += panels.width_of(panel);
        }
        ASSERT_EQ(covered, columns) << what;
        // A boundary between panels is one of the library's blocks, else each pads its own.
        ASSERT_TRUE(panels.count() == 1 || panels.width % 64 == 0) << what;
      }
    }
  }
}

TEST(Panels, SharedEvenlyWhenThereAreColumnsEnough) {
  EXPECT_EQ(Panels::split(2048, 512, 2).count(), 4);
  EXPECT_EQ(Panels::split(2048, 4096, 2).count(), 2);
  EXPECT_EQ(Panels::split(768, 512, 2).width, 384);
  EXPECT_EQ(Panels::split(768, 512, 16).width, 64);  // 12 blocks cannot be shared by 16
}

class PackedExpertsTest : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(DTypes, PackedExpertsTest, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

// Multiplying with one-hot rows reads the weights back, so every packed value is compared.
TEST_P(PackedExpertsTest, EveryWeightIsWhereItsPanelSays) {
  const std::string reason = onednn::unavailable(GetParam(), best_isa());
  if (!reason.empty()) GTEST_SKIP() << reason;
  onednn::claim_isa(GetParam(), best_isa());
  const Problem problem{{4, 20, 150, 3, 1}, GetParam()};
  const Shape& shape = problem.shape;
  const OwnedWeights weights = make_weights(problem, 6);
  const ExpertLayouts layouts(problem, {shape.intermediate, 64}, {shape.hidden, shape.hidden}, 4, 4,
                              1);
  const PackedExperts packed(layouts, problem, weights.view());

  const auto read_back = [&](const onednn::WeightLayout& layout, const onednn::PackedMatrix& w) {
    const std::int64_t k = layout.k();
    Tensor identity(GetParam(), {k, k});
    for (std::int64_t i = 0; i < k; ++i) {
      if (GetParam() == DType::kF32) {
        identity.as<float>()[i * k + i] = 1;
      } else {
        identity.as<BFloat16>()[i * k + i] = to_bfloat16(1);
      }
    }
    const onednn::Gemm gemm(layout, k, 1);
    onednn::GemmCall call(gemm);
    const HostBuffer scratch(gemm.scratch_bytes());
    std::vector<float> c(static_cast<std::size_t>(k * layout.n()), std::nanf(""));
    EXPECT_EQ(call.run(identity.view().data, w, c.data(), scratch.data()), 0);
    return c;  // c[i, j] = W[j, i]
  };
  const auto weight = [&](const Tensor& tensor, std::int64_t index) {
    return GetParam() == DType::kF32 ? tensor.as<float>()[index]
                                     : to_float(tensor.as<BFloat16>()[index]);
  };
  const auto expect_rows = [&](const std::vector<float>& c, std::int64_t n,
                               std::int64_t first_column, const Tensor& tensor,
                               std::int64_t first_row, std::int64_t rows, std::int64_t k,
                               const std::string& what) {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t i = 0; i < k; ++i) {
        ASSERT_EQ(c[static_cast<std::size_t>(i * n + first_column + row)],
                  weight(tensor, (first_row + row) * k + i))
            << what << " row " << row << " column " << i;
      }
    }
  };

  expect_rows(read_back(layouts.router, packed.router()), shape.experts, 0, weights.router, 0,
              shape.experts, shape.hidden, "router");
  const Panels& panels = layouts.gate_up.panels();
  ASSERT_EQ(panels.count(), 3);
  ASSERT_EQ(panels.width_of(2), 22);
  for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
    for (std::int64_t panel = 0; panel < panels.count(); ++panel) {
      const auto& layout = layouts.gate_up.layout(layouts.gate_up.kind_of(panel));
      const std::int64_t width = panels.width_of(panel);
      const auto c = read_back(layout, packed.gate_up(expert, panel));
      const std::int64_t row = expert * shape.intermediate + panels.first(panel);
      const std::string what =
          "expert " + std::to_string(expert) + " panel " + std::to_string(panel);
      expect_rows(c, 2 * width, 0, weights.gate, row, width, shape.hidden, "gate " + what);
      expect_rows(c, 2 * width, width, weights.up, row, width, shape.hidden, "up " + what);
    }
    expect_rows(read_back(layouts.down.layout(0), packed.down(expert, 0)), shape.hidden, 0,
                weights.down, expert * shape.hidden, shape.hidden, shape.intermediate, "down");
  }
}

}  // namespace
}  // namespace moe::cpu
