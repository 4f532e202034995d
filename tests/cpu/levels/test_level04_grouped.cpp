#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "library_level_checks.h"

namespace moe {
namespace {

class Level04Grouped : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    const std::string reason = why_unsupported("grouped", GetParam());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};
INSTANTIATE_TEST_SUITE_P(DTypes, Level04Grouped, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(Level04Grouped, MatchesTheOracleWhereBlocksAndPanelsEnd) {
  const Skew uniform;
  const Skew one_expert = Skew::parse("one-expert");
  struct Case {
    Shape shape;
    Skew skew;
  };
  for (const Case& c :
       {Case{{1, 1, 1, 1, 1}, uniform}, Case{{3, 5, 7, 4, 4}, uniform},
        Case{{256, 32, 24, 1, 1}, uniform},      // one full block of rows
        Case{{257, 32, 24, 1, 1}, uniform},      // two blocks, one row over
        Case{{300, 40, 200, 5, 2}, one_expert},  // a block boundary inside an expert
        Case{{2, 48, 100, 64, 1}, uniform},      // nearly all experts empty
        Case{{33, 64, 200, 4, 2}, uniform}}) {   // last panel narrower
    for (const int threads : {1, 2}) {
      expect_right("grouped", c.shape, GetParam(), threads, c.skew);
    }
  }
}

TEST_P(Level04Grouped, ReplaysDoNotRememberEarlierRoutings) {
  expect_no_memory_of_earlier_routings("grouped", GetParam(), 2);
}

// The level's lesson: a primitive per row count, made in forward when the routing first brings it.
TEST_P(Level04Grouped, MakesAPrimitiveOnceForEachNewRowCount) {
  const Problem problem{{40, 64, 64, 3, 1}, GetParam()};
  const OwnedWeights weights = make_weights(problem, 5);
  const Tensor x = make_input(problem, 5, 0);
  Tensor y(problem.dtype, {40, 64});
  Layer layer = Layer::create(library_level("grouped", problem, 2), weights.view());
  const auto created = [&](std::int64_t tokens) {
    const auto details = details_of(
        layer.trace(x.view().first_rows(tokens), y.view().first_rows(tokens)), "gemm_down");
    EXPECT_FALSE(details.empty());
    return std::count_if(details.begin(), details.end(), [](const std::string& detail) {
      return detail.find("primitive created") != std::string::npos;
    });
  };
  EXPECT_EQ(created(1), 1);  // one row, one expert: m=1
  EXPECT_EQ(created(1), 0);
  EXPECT_GE(created(40), 1);  // some expert has at least 14 rows
  EXPECT_EQ(created(40), 0);
}

TEST_P(Level04Grouped, WorkspaceIsSmallerThanAnyGateAndUpTensor) {
  const Problem problem{{4096, 256, 4096, 8, 2}, GetParam()};
  const MemoryNeeds needs = Layer::predict(library_level("grouped", problem, 2));
  const auto routed = static_cast<std::uint64_t>(problem.shape.routed_rows());
  const auto act = routed * 4096 * size_of(GetParam());
  const auto gate_and_up = routed * 2 * 4096 * sizeof(float);
  EXPECT_GT(needs.workspace, act);
  EXPECT_LT(needs.workspace - act, gate_and_up / 8);
  EXPECT_EQ(needs.transient, 0U);
}

}  // namespace
}  // namespace moe
