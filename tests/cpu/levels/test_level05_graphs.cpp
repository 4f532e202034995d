#include <gtest/gtest.h>

#include <string>

#include "library_level_checks.h"

namespace moe {
namespace {

class Level05Graphs : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    const std::string reason = why_unsupported("graphs", GetParam());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};
INSTANTIATE_TEST_SUITE_P(DTypes, Level05Graphs, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(Level05Graphs, MatchesTheOracleWhereBlocksAndPanelsEnd) {
  const Skew uniform;
  const Skew one_expert = Skew::parse("one-expert");
  struct Case {
    Shape shape;
    Skew skew;
  };
  for (const Case& c :
       {Case{{1, 1, 1, 1, 1}, uniform}, Case{{3, 5, 7, 4, 4}, uniform},
        Case{{256, 32, 24, 1, 1}, uniform},       // one full block of rows
        Case{{257, 32, 24, 1, 1}, uniform},       // two blocks, one row over
        Case{{300, 40, 200, 5, 2}, one_expert},   // a block boundary inside an expert
        Case{{2, 48, 100, 64, 1}, uniform},       // groups below the smallest GEMM
        Case{{5, 130, 200, 2, 2}, uniform},       // narrower last panels, K = E
        Case{{33, 200, 1100, 4, 2}, uniform}}) {  // several panels per thread
    for (const int threads : {1, 3}) {
      expect_right("graphs", c.shape, GetParam(), threads, c.skew);
    }
  }
}

TEST_P(Level05Graphs, ReplaysDoNotRememberEarlierRoutings) {
  for (const int threads : {1, 2}) {
    expect_no_memory_of_earlier_routings("graphs", GetParam(), threads);
  }
}

// Panels and row blocks depend on the thread count; the arithmetic of one output must not.
TEST_P(Level05Graphs, MoreThreadsThanColumnBlocksStillCoverEveryColumn) {
  expect_right("graphs", {9, 64, 64, 2, 1}, GetParam(), 8, {});
}

TEST_P(Level05Graphs, RecordsItsPlanNotItsSteps) {
  const Problem problem{{12, 64, 64, 3, 2}, GetParam()};
  const OwnedWeights weights = make_weights(problem, 5);
  const Tensor x = make_input(problem, 5, 0);
  const Tensor y(problem.dtype, {12, 64});
  Layer layer = Layer::create(library_level("graphs", problem, 2), weights.view());
  const auto trace = layer.trace(x.view(), y.view());
  ASSERT_EQ(details_of(trace, "replay").size(), 1U);
  EXPECT_NE(details_of(trace, "replay").front().find("4 to 12 rows"), std::string::npos)
      << details_of(trace, "replay").front();
  for (const TraceEvent& event : trace) {
    EXPECT_EQ(event.detail.find("created"), std::string::npos) << event.op << " " << event.detail;
  }
}

}  // namespace
}  // namespace moe
