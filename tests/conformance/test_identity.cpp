// No level is another one under a new name, and a trace is what forward does.
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "conformance/levels_under_test.h"
#include "core/memory.h"
#include "core/workload.h"
#include "moe/verify.h"

namespace moe {
namespace {

const std::vector<Problem>& traced_problems() {
  static const std::vector<Problem> problems = [] {
    std::vector<Problem> list;
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const Shape& shape :
           {Shape{1, 64, 96, 8, 2}, Shape{40, 64, 96, 8, 2}, Shape{130, 128, 64, 4, 1}}) {
        list.push_back({shape, dtype});
      }
    }
    return list;
  }();
  return problems;
}

/// Traces of a level over the problems; a problem that it cannot run has none.
std::vector<std::vector<TraceEvent>> traces_of(const std::string& level) {
  std::vector<std::vector<TraceEvent>> traces;
  for (const Problem& problem : traced_problems()) {
    const OwnedWeights weights = make_weights(problem, 41);
    const Tensor x = make_input(problem, 41, 0);
    const Tensor y(problem.dtype, {problem.shape.tokens, problem.shape.hidden});
    LayerOrReason created = create_layer(options_of(level, problem), weights.view());
    traces.push_back(created.layer ? created.layer->trace(x.view(), y.view())
                                   : std::vector<TraceEvent>{});
  }
  return traces;
}

std::string text_of(const std::vector<TraceEvent>& trace) {
  std::string text;
  for (const TraceEvent& event : trace) {
    text += "  " + event.op + " | " + event.detail + " | " + std::to_string(event.bytes) + "\n";
  }
  return text;
}

TEST(Identity, NoTwoLevelsHaveEqualTraces) {
  std::map<std::string, std::vector<std::vector<TraceEvent>>> traces;
  for (const std::string& level : levels_under_test()) traces[level] = traces_of(level);
  int compared = 0;
  for (const auto& [name, mine] : traces) {
    for (const auto& [other_name, other] : traces) {
      if (!(name < other_name)) continue;
      for (std::size_t i = 0; i < mine.size(); ++i) {
        if (mine[i].empty() || other[i].empty()) continue;
        ++compared;
        EXPECT_NE(mine[i], other[i]) << name << " and " << other_name << " do the same at "
                                     << to_string(traced_problems()[i].shape) << ":\n"
                                     << text_of(mine[i]);
      }
    }
  }
  if (compared == 0) GTEST_SKIP() << "fewer than two levels can run here";
}

class Trace : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Conformance, Trace, testing::ValuesIn(levels_under_test()),
                         [](const auto& parameter) { return parameter.param; });

TEST_P(Trace, RecordsTheForwardThatRan) {
  bool ran = false;
  std::string reason;
  for (const Problem& problem : traced_problems()) {
    const OwnedWeights weights = make_weights(problem, 42);
    LayerOrReason created = create_layer(options_of(GetParam(), problem), weights.view());
    if (!created.layer) {
      reason = created.reason;
      continue;
    }
    ran = true;
    HostLayer& layer = *created.layer;
    const Tensor x = make_input(problem, 42, 0);
    const Tensor y(problem.dtype, {problem.shape.tokens, problem.shape.hidden});
    const Tensor traced_y(problem.dtype, {problem.shape.tokens, problem.shape.hidden});
    poison(y.view());
    poison(traced_y.view());
    layer.forward(x.view(), y.view());
    const std::vector<TraceEvent> trace = layer.trace(x.view(), traced_y.view());
    EXPECT_EQ(std::memcmp(y.view().data, traced_y.view().data, y.view().bytes()), 0)
        << "a traced forward computes something else";
    ASSERT_FALSE(trace.empty());
    EXPECT_EQ(trace, layer.trace(x.view(), traced_y.view()))
        << "two traces of one forward differ:\n"
        << text_of(trace);
    for (const TraceEvent& event : trace) {
      EXPECT_FALSE(event.op.empty());
      // A label is not a difference: levels must differ in what they do.
      EXPECT_EQ((event.op + event.detail).find(layer->level().symbol), std::string::npos)
          << event.detail;
    }
    // What the level says it takes and frees itself shows as "alloc" steps; a few vectors of one
    // token's size need not. A GPU's pool hands out whole pages.
    constexpr std::size_t kPage = kBackend == Backend::kCuda ? std::size_t{2} << 20 : 1;
    std::uint64_t allocated = 0;
    for (const TraceEvent& event : trace) {
      if (event.op == "alloc") allocated += round_up(event.bytes, kPage);
    }
    constexpr std::uint64_t kOneToken = 4096;
    EXPECT_GE(allocated + kOneToken, layer->memory().transient) << text_of(trace);
    EXPECT_TRUE(allocated == 0 || layer->memory().transient > 0) << text_of(trace);
  }
  if (!ran) GTEST_SKIP() << reason;
}

}  // namespace
}  // namespace moe
