// Level 8 where its blocks cooperate and where its products overlap, which needs more rows and experts than the
// shapes of other tests have; under every plan that it can choose; and its tuning.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "core/cache_file.h"
#include "core/crossover.h"
#include "core/scalar.h"
#include "cuda/graph.h"
#include "cuda/levels/level_test.h"
#include "cuda/ops/fingerprint.h"
#include "cuda/ops/persistent_choices.h"
#include "moe/error.h"
#include "moe/verify.h"
#include "temporary_folder.h"

namespace moe::cuda {
namespace {

class CudaPersistentLevel : public CudaLevelTest {
 protected:
  void SetUp() override {
    CudaLevelTest::SetUp();
    if (IsSkipped()) return;
    try {
      static_cast<void>(Layer::predict({.level = "persistent",
                                        .backend = Backend::kCuda,
                                        .problem = {{1, 8, 8, 1, 1}, DType::kBF16}}));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      GTEST_SKIP() << error.what();
    }
  }
  void check(const Problem& problem, const char* planned);
  void two_layers(const Problem& problem);
};

/// The oracle's answer and the same bits every time, from a layer whose plan has `planned` in it. Also
/// for fewer tokens than it is made for, and experts with more than one tile or none.
void CudaPersistentLevel::check(const Problem& problem, const char* planned) {
  const OwnedWeights host = make_weights(problem, 7);
  const Weights weights = place(host);
  const Stream stream(unsigned{cudaStreamNonBlocking});
  Layer layer = Layer::create({.level = "persistent",
                               .backend = Backend::kCuda,
                               .problem = problem,
                               .tune_seconds = 0,
                               .tune_cache = "off",
                               .stream = stream.get()},
                              weights);
  ASSERT_NE(layer.plan().find(planned), std::string::npos) << layer.plan();
  struct Case {
    std::int64_t tokens;
    const char* skew;
  };
  for (const Case& c :
       {Case{problem.shape.tokens, "uniform"}, Case{1001, "zipf:1"}, Case{700, "one-expert"}}) {
    SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.skew);
    Problem part = problem;
    part.shape.tokens = c.tokens;
    const Tensor input = make_input(part, 7, 0, Skew::parse(c.skew));
    const TensorView x = place(input.view());
    const TensorView y = place(make_input(part, 7, 1).view());
    MOE_CUDA_CHECK(cudaMemset(y.data, 0xff, y.bytes()));
    MOE_CUDA_CHECK(cudaDeviceSynchronize());
    layer.forward(x, y);
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    const Tensor got = download(y);
    const Comparison comparison = Oracle(part, host.view(), input.view()).compare(got.view());
    ASSERT_TRUE(comparison.passed) << comparison.describe();

    constexpr int kForwards = 500;
    const DeviceBuffer sums(kForwards * sizeof(std::uint64_t));
    for (int i = 0; i < kForwards; ++i) {
      layer.forward(x, y);
      fingerprint(y.data, y.bytes(), sums.as<std::uint64_t>() + i, stream.get());
    }
    MOE_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
    std::vector<std::uint64_t> prints(kForwards);
    device().copy_to_host(prints.data(), sums.data(), sums.size());
    for (int i = 1; i < kForwards; ++i) {
      ASSERT_EQ(prints[static_cast<std::size_t>(i)], prints[0]) << "forward " << i;
    }
  }
}

TEST_F(CudaPersistentLevel, CooperatingBlocks) {
  // 200 rows an expert, or a few, which are not halved; five feature blocks in the first product, four and
  // a half in the second.
  check({{6400, 576, 320, 128, 4}, DType::kBF16}, "cooperative");
}

TEST_F(CudaPersistentLevel, TheSecondProductBesideTheFirst) {
  // 100 and 200 rows an expert, and 640 items.
  check({{3200, 1280, 192, 128, 4}, DType::kBF16}, "begun on finished row tiles");
  check({{6400, 1280, 192, 128, 4}, DType::kBF16}, "begun on finished row tiles");
}

TEST_F(CudaPersistentLevel, TwoLayersOnTwoStreams) {
  // One tile; blocks that gather beside the products; cooperating ones; a second product beside the first.
  for (const Shape& shape : {Shape{1, 256, 192, 8, 2}, Shape{700, 512, 256, 8, 2},
                             Shape{6400, 320, 192, 128, 4}, Shape{3200, 1280, 192, 128, 4}}) {
    two_layers({shape, DType::kBF16});
    release();
  }
}

/// Both at once give the bits that either gives alone: the kernel in front, whose blocks wait for each other,
/// and products whose blocks wait for rows from each other find their multiprocessors taken by the other
/// layer's. Launched one by one and as graphs, so that either stream has work all the time.
void CudaPersistentLevel::two_layers(const Problem& problem) {
  SCOPED_TRACE(to_string(problem.shape));
  const Weights weights = place(make_weights(problem, 6));
  const Stream streams[2] = {Stream(unsigned{cudaStreamNonBlocking}),
                             Stream(unsigned{cudaStreamNonBlocking})};
  const auto create = [&](cudaStream_t stream) {
    return Layer::create({.level = "persistent",
                          .backend = Backend::kCuda,
                          .problem = problem,
                          .tune_seconds = 0,
                          .tune_cache = "off",
                          .stream = stream,
                          .launch = Launch::kEager},  // recorded here
                         weights);
  };
  Layer alone = create(nullptr);
  Layer layers[2] = {create(streams[0].get()), create(streams[1].get())};
  TensorView x[2];
  TensorView y[2];
  Tensor want[2];
  std::vector<GraphExec> graphs;
  for (std::size_t i = 0; i < 2; ++i) {
    x[i] = place(make_input(problem, 6, i).view());
    y[i] = place(make_input(problem, 6, 9).view());
    alone.forward(x[i], y[i]);
    want[i] = download(y[i]);
    layers[i].forward(x[i], y[i]);  // loads its kernels
    MOE_CUDA_CHECK(cudaStreamSynchronize(streams[i].get()));
    graphs.emplace_back(streams[i].get(), [&] {
      for (int forward = 0; forward < 8; ++forward) layers[i].forward(x[i], y[i]);
    });
  }
  const auto check_both = [&](const char* how) {
    for (std::size_t i = 0; i < 2; ++i) {
      MOE_CUDA_CHECK(cudaStreamSynchronize(streams[i].get()));
      const Tensor got = download(y[i]);
      EXPECT_EQ(std::memcmp(got.view().data, want[i].view().data, got.view().bytes()), 0)
          << how << ", layer " << i;
      MOE_CUDA_CHECK(cudaMemset(y[i].data, 0xff, y[i].bytes()));
    }
    MOE_CUDA_CHECK(cudaDeviceSynchronize());
  };
  check_both("one after the other");
  for (int round = 0; round < 100; ++round) {
    for (std::size_t i = 0; i < 2; ++i) layers[i].forward(x[i], y[i]);
  }
  check_both("launched one by one");
  for (int round = 0; round < 50; ++round) {
    for (std::size_t i = 0; i < 2; ++i) graphs[i].launch(streams[i].get());
  }
  check_both("as graphs");
}

/// With a tuning cache of its own.
class CudaPersistentTuning : public CudaPersistentLevel {
 protected:
  void place_problem(const Problem& problem, const char* skew = "uniform") {
    problem_ = problem;
    host_.emplace(make_weights(problem, 7, Skew::parse(skew)));
    weights_ = place(*host_);
    const Tensor input = make_input(problem, 7, 0, Skew::parse(skew));
    x_ = place(input.view());
    y_ = place(input.view());
    OracleOptions options;
    if (problem.router.scoring == Scoring::kGiven) {
      const OwnedRoutes routes = make_routes(problem.shape, 7, 0);
      options.routes = routes.view();
      place_routes(routes);
      oracle_.emplace(problem, host_->view(), input.view(), options);
    } else {
      oracle_.emplace(problem, host_->view(), input.view());
    }
  }
  void place_routes(const OwnedRoutes& routes) {
    const auto count = static_cast<std::int64_t>(routes.experts.size());
    experts_.emplace(device(), routes.experts);
    factors_.emplace(device(), routes.weights);
    ASSERT_EQ(count, problem_.shape.routed_rows());
  }
  Layer create(double seconds, Tuning tuning = Tuning::kMissing,
               const std::string& skew = "uniform") {
    return Layer::create({.level = "persistent",
                          .backend = Backend::kCuda,
                          .problem = problem_,
                          .tune_seconds = seconds,
                          .tune_cache = folder_.path(),
                          .tuning = tuning,
                          .tune_skew = skew},
                         weights_);
  }
  /// y of the first `rows` rows, compared with the oracle.
  std::vector<std::byte> verified(Layer& layer, std::int64_t rows) {
    MOE_CUDA_CHECK(cudaMemset(y_.data, 0xff, y_.bytes()));
    forward(layer, rows);
    const Tensor y = download(y_.first_rows(rows));
    const Comparison comparison = oracle_->compare(y.view());
    EXPECT_TRUE(comparison.passed) << rows << " rows: " << comparison.describe();
    const auto* bytes = y.as<const std::byte>();
    return {bytes, bytes + y.view().bytes()};
  }
  void forward(Layer& layer, std::int64_t rows) {
    if (problem_.router.scoring == Scoring::kGiven) {
      layer.forward(x_.first_rows(rows), y_.first_rows(rows), {experts_->data(), factors_->data()});
    } else {
      layer.forward(x_.first_rows(rows), y_.first_rows(rows));
    }
  }
  /// A layer under `plan`, by way of the cache.
  Layer create_with(const PersistentPlan& plan) {
    EXPECT_EQ(cache().save({{.tokens = problem_.shape.tokens,
                             .plan = plan,
                             .routing = "uniform",
                             .candidates = 1,
                             .complete = true}}),
              "");
    Layer layer = create(0);
    EXPECT_TRUE(says(layer, to_string(plan))) << layer.plan();
    return layer;
  }
  [[nodiscard]] PersistentChoiceCache cache() {
    return {folder_.path(), device().facts(), problem_, ""};  // L2 holds these weights
  }
  static bool says(const Layer& layer, const std::string& text) {
    return layer.plan().find(text) != std::string::npos;
  }

  test::TemporaryFolder folder_;
  Problem problem_;
  std::optional<OwnedWeights> host_;
  Weights weights_;
  TensorView x_, y_;
  std::optional<Oracle> oracle_;
  std::optional<DeviceArray<std::int32_t>> experts_;  // of given routes, like the weights after it
  std::optional<DeviceArray<float>> factors_;
};

TEST_F(CudaPersistentTuning, EveryPlanGivesTheOraclesAnswerAndTheSameBits) {
  // Rows an expert on average: 256, where every kind of tile is a candidate, and 2, with empty experts.
  for (const auto& [shape, skew] : {std::pair{Shape{1024, 192, 320, 8, 2}, "uniform"},
                                    std::pair{Shape{1024, 128, 96, 8, 2}, "zipf:1"},
                                    std::pair{Shape{33, 192, 320, 33, 2}, "uniform"}}) {
    place_problem({shape, DType::kBF16}, skew);
    const std::vector<PersistentPlan> plans =
        candidate_plans(problem_, shape.tokens, device().facts()).plans;
    ASSERT_GT(plans.size(), 2U);
    std::vector<std::byte> first;
    for (const PersistentPlan& plan : plans) {
      SCOPED_TRACE(to_string(shape) + ", " + to_string(plan));
      Layer layer = create_with(plan);
      const std::vector<std::byte> got = verified(layer, shape.tokens);
      if (first.empty()) first = got;
      EXPECT_TRUE(got == first) << "other bits than those of " << to_string(plans.front());
    }
    release();
  }
}

TEST_F(CudaPersistentTuning, BlocksOfRealModelsUnderEveryKindOfTile) {
  for (const char* options :
       {"--router softmax,bias --activation swiglu,alpha=1.702,limit=2,up=1 --expert-bias",
        "--router sigmoid,selection-bias,groups=4/2,scale=2.5 --shared 320",
        "--shared 500,switch --expert-bias",
        "--router sigmoid,selection-bias,scale=2.5 --activation relu2 --shared 400 --expert-bias",
        "--router sigmoid,raw,on-input --shared 320", "--activation geglu --shared 24",
        "--router given --shared 100 --activation relu2"}) {
    for (const Shape& shape : {Shape{1024, 192, 320, 8, 2}, Shape{61, 200, 320, 16, 3}}) {
      Problem problem{shape, DType::kBF16};
      set_block_options(problem, options);
      place_problem(problem);
      std::vector<std::string> kinds;
      std::vector<std::byte> first;
      for (const PersistentPlan& plan :
           candidate_plans(problem, shape.tokens, device().facts()).plans) {
        const std::string kind = fmt::format("{} {} {}", plan.gate_up.largest_tile,
                                             plan.gate_up.gathers, plan.down_begins_early);
        if (std::find(kinds.begin(), kinds.end(), kind) != kinds.end()) continue;
        kinds.push_back(kind);
        SCOPED_TRACE(to_string(shape) + " " + options + ", " + to_string(plan));
        Layer layer = create_with(plan);
        const std::vector<std::byte> got = verified(layer, shape.tokens);
        if (first.empty()) first = got;
        ASSERT_TRUE(got == first) << "other bits than those of the first plan";
        for (int again = 0; again < 20; ++again) forward(layer, shape.tokens);
        ASSERT_TRUE(verified(layer, shape.tokens) == first) << "other bits the next time";
      }
      EXPECT_GE(kinds.size(), 2U);
      release();
    }
  }
}

TEST_F(CudaPersistentTuning, GivenRoutesMayGiveAnExpertMoreRowsThanTokens) {
  Problem problem{{300, 192, 320, 8, 3}, DType::kBF16};
  problem.router = parse_router("given");
  place_problem(problem);
  Layer layer = create(0);
  // Every token takes expert 5 twice or three times, with weights that add up to 1; then once.
  OwnedRoutes routes;
  for (std::int64_t slot = 0; slot < problem.shape.routed_rows(); ++slot) {
    const std::int64_t token = slot / 3;
    routes.experts.push_back(slot % 3 == 2 && token % 2 == 0 ? -1 : 5);
    routes.weights.push_back(slot % 3 == 0 ? 0.5F : token % 2 == 0 ? 0.5F : 0.25F);
  }
  const auto answer = [&] {
    place_routes(routes);
    MOE_CUDA_CHECK(cudaMemset(y_.data, 0xff, y_.bytes()));
    forward(layer, 300);
    const Tensor y = download(y_);
    const auto* values = y.as<BFloat16>();
    return std::vector<BFloat16>(values, values + y.view().elements());
  };
  const std::vector<BFloat16> repeated = answer();
  for (std::int64_t slot = 0; slot < problem.shape.routed_rows(); ++slot) {
    const auto at = static_cast<std::size_t>(slot);
    routes.experts[at] = slot % 3 == 0 ? 5 : -1;
    routes.weights[at] = 1;
  }
  const std::vector<BFloat16> once = answer();
  double largest = 0;
  for (std::size_t i = 0; i < once.size(); ++i) {
    ASSERT_EQ(to_float(repeated[i]), to_float(once[i])) << "element " << i;  // halves are exact
    largest = std::max(largest, std::abs(static_cast<double>(to_float(once[i]))));
  }
  EXPECT_GT(largest, 0.1);
}

TEST_F(CudaPersistentTuning, TimesBlocksOfRealModels) {
  for (const char* options : {"--shared 100,switch --activation geglu",
                              "--router sigmoid,raw,on-input --shared 64 --expert-bias"}) {
    Problem problem{{200, 128, 64, 8, 2}, DType::kBF16};
    set_block_options(problem, options);
    place_problem(problem);
    Layer layer = create(10);
    EXPECT_TRUE(says(layer, "choices timed now")) << layer.plan();
    for (const TunedChoice& choice : layer.tuned()) EXPECT_TRUE(choice.complete) << choice.tokens;
    for (const std::int64_t rows : {200, 64, 3}) verified(layer, rows);
    release();
  }
}

TEST_F(CudaPersistentTuning, IsTunedOnceAndReadAfterwards) {
  place_problem({{600, 256, 192, 8, 2}, DType::kBF16});
  Layer cold = create(20);
  EXPECT_TRUE(says(cold, "11 choices timed now, within 20 s, kept in " + cache().path()))
      << cold.plan();
  ASSERT_EQ(cold.tuned().size(), 11U);
  for (const TunedChoice& choice : cold.tuned()) {
    EXPECT_TRUE(choice.timed && choice.complete) << choice.tokens;
    EXPECT_EQ(choice.routing, "uniform");
    EXPECT_EQ(static_cast<std::size_t>(choice.candidates), choice.timings.size());
    EXPECT_GT(choice.standard_us, 0);
    EXPECT_LE(choice.chosen_us, choice.standard_us);
  }
  const std::string kept = *read_whole(cache().path());
  Layer warm = create(20);
  EXPECT_TRUE(says(warm, "11 choices read from " + cache().path())) << warm.plan();
  EXPECT_EQ(*read_whole(cache().path()), kept);
  EXPECT_TRUE(warm.tuned().front().timings.empty());
  for (const std::int64_t rows : {600, 599, 512, 130, 31, 1}) {
    EXPECT_TRUE(verified(cold, rows) == verified(warm, rows)) << rows;
  }
  // A layer of fewer tokens finds those that it shares: 256, 128, ... 1.
  problem_.shape.tokens = 300;
  Layer fewer = create(0);
  EXPECT_TRUE(says(fewer, "9 choices read from")) << fewer.plan();
  EXPECT_TRUE(says(fewer, "300 tokens")) << fewer.plan();
  EXPECT_TRUE(says(fewer, "heuristic, not timed")) << fewer.plan();
  // Anew, under another routing.
  problem_.shape.tokens = 600;
  Layer anew = create(20, Tuning::kAnew, "zipf:1");
  EXPECT_TRUE(says(anew, "11 choices timed now")) << anew.plan();
  EXPECT_EQ(anew.tuned().front().routing, "zipf:1");
  EXPECT_TRUE(verified(anew, 600) == verified(cold, 600));
}

TEST_F(CudaPersistentTuning, BadFilesAreNamedIgnoredAndReplaced) {
  place_problem({{64, 64, 64, 4, 2}, DType::kBF16});
  create(5);
  const std::string good = *read_whole(cache().path());
  std::string foreign = good;
  const std::size_t at = foreign.find(", kernels ");
  ASSERT_NE(at, std::string::npos);
  foreign.replace(at, 12, ", kernels 00");
  ASSERT_NE(foreign, good);
  for (const std::string& text : {std::string("damage"), foreign}) {
    std::ofstream(cache().path(), std::ios::binary) << text;
    Layer untuned = create(0);
    EXPECT_TRUE(says(untuned, cache().path() + " was not used: it ")) << untuned.plan();
    EXPECT_TRUE(says(untuned, "choices not timed: heuristic")) << untuned.plan();
    verified(untuned, 64);
    Layer layer = create(5);
    EXPECT_TRUE(says(layer, "7 choices timed now")) << layer.plan();
    verified(layer, 64);
    EXPECT_TRUE(says(create(5), "7 choices read from")) << layer.plan();
  }
}

TEST_F(CudaPersistentTuning, MoreTimeGoesOnWhereLittleEnded) {
  place_problem({{512, 256, 128, 8, 2}, DType::kBF16});
  EXPECT_FALSE(create(1e-6).tuned().front().complete);
  EXPECT_TRUE(says(create(1e-6), "10 choices read from"));
  EXPECT_TRUE(says(create(20), "10 choices timed now"));
  EXPECT_TRUE(says(create(1e-6), "10 choices read from"));
}

TEST_F(CudaPersistentTuning, AutoGoesByTheMeasuredCrossover) {
  const auto choice = [&](std::int64_t tokens) {
    problem_.shape.tokens = tokens;
    const Layer layer = Layer::create({.level = "auto",
                                       .backend = Backend::kCuda,
                                       .problem = problem_,
                                       .tune_seconds = 0,
                                       .tune_cache = folder_.path()},
                                      weights_);
    return layer.choice();
  };
  place_problem({{4, 64, 64, 64, 2}, DType::kBF16});
  // By the rule, for two rows an expert, all of these are streaming's.
  for (const std::int64_t tokens : {1, 4}) {
    EXPECT_TRUE(choice(tokens).starts_with("streaming:")) << choice(tokens);
    EXPECT_NE(choice(tokens).find("by rule"), std::string::npos) << choice(tokens);
    EXPECT_NE(choice(tokens).find("not measured here"), std::string::npos) << choice(tokens);
  }
  DeviceIdentity identity = device().identity();
  const Crossover crossover{.samples = {{1, 10, 20}, {2, 10, 20}, {4, 30, 20}},
                            .routing = "uniform",
                            .date = "2026-01-31T12:00:00Z"};
  ASSERT_EQ(
      CrossoverCache(folder_.path(), identity, problem_, "streaming", "persistent").save(crossover),
      "");
  for (const auto& [tokens, level] : {std::pair{1, "streaming"}, std::pair{2, "streaming"},
                                      std::pair{3, "persistent"}, std::pair{4, "persistent"}}) {
    EXPECT_TRUE(choice(tokens).starts_with(level)) << choice(tokens);
    EXPECT_NE(choice(tokens).find("faster than persistent up to 2, slower at 4"), std::string::npos)
        << choice(tokens);
  }
  EXPECT_NE(choice(5).find("by rule"), std::string::npos) << "beyond what was measured";
  identity.version += " of yesterday";
  ASSERT_EQ(
      CrossoverCache(folder_.path(), identity, problem_, "streaming", "persistent").save(crossover),
      "");
  EXPECT_TRUE(choice(4).starts_with("streaming:")) << choice(4);
  EXPECT_NE(choice(4).find("was not used: it was made for something else"), std::string::npos)
      << choice(4);
}

TEST_F(CudaPersistentTuning, OthersRefuseSkew) {
  place_problem({{64, 64, 64, 4, 2}, DType::kBF16});
  try {
    Layer::create({.level = "compiled",
                   .backend = Backend::kCuda,
                   .problem = problem_,
                   .tune_cache = "off",
                   .tune_skew = "zipf:1"},
                  weights_);
    FAIL() << "compiled is tuned under uniform routing only";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
  }
  EXPECT_THROW(create(1, Tuning::kAnew, "zipf:99"), Error);
}

}  // namespace
}  // namespace moe::cuda
