// What the loader makes of checkpoints that the transformers library wrote, held against that library's
// own outputs: also for families whose layer no level computes yet, by a forward written here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <numeric>

#include "checkpoint/load.h"

namespace moe::checkpoint {
namespace {

using Row = std::vector<double>;

std::string fixtures() {
  const char* fresh = std::getenv("MOE_INTEROP");
  return fresh != nullptr ? fresh : MOE_SOURCE_DIR "/tests/interop/fixtures";
}

double silu(double value) {
  return value / (1 + std::exp(-value));
}
double sigmoid(double value) {
  return 1 / (1 + std::exp(-value));
}

/// matrix[rows, x.size()] from element `first` on, times x.
Row times(const Tensor& matrix, std::int64_t first, std::int64_t rows, const Row& x) {
  Row out(static_cast<std::size_t>(rows));
  const auto columns = static_cast<std::int64_t>(x.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      out[static_cast<std::size_t>(row)] +=
          static_cast<double>(matrix.as<float>()[first + row * columns + column]) *
          x[static_cast<std::size_t>(column)];
    }
  }
  return out;
}

/// Indices of the `count` largest.
std::vector<std::size_t> largest(const Row& values, std::size_t count) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  order.resize(count);
  return order;
}

/// One token through a layer as the model's own code has it.
class Model {
 public:
  Model(const LayerPlan& plan, const LayerContents& contents, const nlohmann::json& config)
      : plan_(plan),
        contents_(contents),
        type_(config.at("model_type").get<std::string>()),
        top_k_(config.at("num_experts_per_tok").get<std::size_t>()),
        groups_(config.value("n_group", std::size_t{1})),
        top_groups_(config.value("topk_group", std::size_t{1})),
        scale_(config.value("routed_scaling_factor", 1.0)) {}

  Row forward(const Row& x) const {
    Row logits = times(contents_.weights.router, 0, plan_.experts, x);
    Row y(x.size());
    for (const auto& [expert, weight] : route(logits)) {
      // Llama 4 scales what goes in, the others what comes out.
      const bool scale_input = type_ == "llama4_text";
      Row input = x;
      for (double& value : input) value *= scale_input ? weight : 1;
      add(y, run_expert(static_cast<std::int64_t>(expert), input), scale_input ? 1 : weight);
    }
    if (plan_.shared > 0) {
      const Row gate = times(contents_.weights.shared_gate, 0, plan_.shared, x);
      Row act = times(contents_.weights.shared_up, 0, plan_.shared, x);
      for (std::size_t i = 0; i < act.size(); ++i) act[i] *= silu(gate[i]);
      add(y, times(contents_.weights.shared_down, 0, plan_.hidden, act), 1);
    }
    return y;
  }

 private:
  using Routes = std::vector<std::pair<std::size_t, double>>;

  Routes route(Row logits) const {
    if (plan_.has(Role::kRouterBias)) {
      for (std::size_t e = 0; e < logits.size(); ++e) {
        logits[e] += static_cast<double>(contents_.weights.router_bias.as<float>()[e]);
      }
    }
    if (plan_.has(Role::kSelectionBias)) return route_by_sigmoid(logits);
    Routes routes;
    double sum = 0;
    for (const std::size_t expert : largest(logits, top_k_)) {
      const double weight =
          type_ == "llama4_text" ? sigmoid(logits[expert]) : std::exp(logits[expert]);
      routes.emplace_back(expert, weight);
      sum += weight;
    }
    for (auto& [expert, weight] : routes) weight /= type_ == "llama4_text" ? 1 : sum;
    return routes;
  }

  /// DeepSeek-V3: groups by the sum of their two best, experts of the best groups, weights without bias.
  Routes route_by_sigmoid(const Row& logits) const {
    Row choice(logits.size());
    for (std::size_t e = 0; e < logits.size(); ++e) {
      choice[e] =
          sigmoid(logits[e]) + static_cast<double>(contents_.weights.selection_bias.as<float>()[e]);
    }
    const std::size_t size = logits.size() / groups_;
    Row of_groups(groups_);
    for (std::size_t group = 0; group < groups_; ++group) {
      const Row members(choice.begin() + static_cast<std::ptrdiff_t>(group * size),
                        choice.begin() + static_cast<std::ptrdiff_t>((group + 1) * size));
      for (const std::size_t best : largest(members, 2)) of_groups[group] += members[best];
    }
    const std::vector<std::size_t> open = largest(of_groups, top_groups_);
    for (std::size_t e = 0; e < choice.size(); ++e) {
      if (std::find(open.begin(), open.end(), e / size) == open.end()) choice[e] = 0;
    }
    Routes routes;
    double sum = 0;
    for (const std::size_t expert : largest(choice, top_k_)) {
      routes.emplace_back(expert, sigmoid(logits[expert]));
      sum += routes.back().second;
    }
    for (auto& [expert, weight] : routes) weight *= scale_ / sum;
    return routes;
  }

  Row run_expert(std::int64_t e, const Row& x) const {
    const std::int64_t i = plan_.intermediate;
    const std::int64_t matrix = e * i * plan_.hidden;
    Row gate = times(contents_.weights.gate, matrix, i, x);
    Row act = times(contents_.weights.up, matrix, i, x);
    const bool gpt_oss = plan_.has(Role::kGateUpBias);
    for (std::size_t k = 0; k < act.size(); ++k) {
      if (gpt_oss) {
        gate[k] += static_cast<double>(
            contents_.weights.gate_bias.as<float>()[e * i + static_cast<std::int64_t>(k)]);
        act[k] += static_cast<double>(
            contents_.weights.up_bias.as<float>()[e * i + static_cast<std::int64_t>(k)]);
        gate[k] = std::min(gate[k], 7.0);
        act[k] = (std::clamp(act[k], -7.0, 7.0) + 1) * gate[k] * sigmoid(1.702 * gate[k]);
      } else {
        act[k] *= silu(gate[k]);
      }
    }
    Row out = times(contents_.weights.down, matrix, plan_.hidden, act);
    for (std::size_t h = 0; gpt_oss && h < out.size(); ++h) {
      out[h] += static_cast<double>(
          contents_.weights.down_bias.as<float>()[e * plan_.hidden + static_cast<std::int64_t>(h)]);
    }
    return out;
  }

  static void add(Row& to, const Row& values, double weight) {
    for (std::size_t h = 0; h < to.size(); ++h) to[h] += weight * values[h];
  }

  const LayerPlan& plan_;
  const LayerContents& contents_;
  std::string type_;
  std::size_t top_k_;
  std::size_t groups_;
  std::size_t top_groups_;
  double scale_;
};

struct Fixture {
  const char* name;
  std::int64_t layer;
  Layout layout;
};
std::ostream& operator<<(std::ostream& out, const Fixture& fixture) {
  return out << fixture.name;
}

class Transformers : public testing::TestWithParam<Fixture> {};
INSTANTIATE_TEST_SUITE_P(Interop, Transformers,
                         testing::Values(Fixture{"mixtral", 0, Layout::kMixtral},
                                         Fixture{"qwen3_moe", 1, Layout::kPerExpert},
                                         Fixture{"olmoe", 1, Layout::kPerExpert},
                                         Fixture{"granitemoe", 0, Layout::kGranite},
                                         Fixture{"deepseek_v3", 1, Layout::kPerExpert},
                                         Fixture{"glm4_moe", 1, Layout::kPerExpert},
                                         Fixture{"gpt_oss", 0, Layout::kGptOss},
                                         Fixture{"llama4", 0, Layout::kLlama4}),
                         [](const auto& parameter) { return std::string(parameter.param.name); });

TEST_P(Transformers, LoadedValuesGiveTheLibrarysOutput) {
  const std::string folder = fixtures() + "/" + GetParam().name;
  Checkpoint model = Checkpoint::open(folder);
  const LayerPlan plan = plan_layer(model, GetParam().layer);
  EXPECT_EQ(name_of(plan.layout), name_of(GetParam().layout));
  const LayerContents contents = load_layer(plan, DType::kF32);
  EXPECT_TRUE(contents.exact);
  const Model layer(plan, contents, nlohmann::json::parse(model.config().value()));

  Checkpoint dump =
      Checkpoint::open(folder + ".layer" + std::to_string(GetParam().layer) + ".safetensors");
  const Tensor x = load_tensor(dump.locate("x"), DType::kF32);
  const Tensor y = load_tensor(dump.locate("y"), DType::kF32);
  const std::int64_t hidden = x.view().dim(1);
  for (std::int64_t token = 0; token < x.view().dim(0); ++token) {
    const float* first = x.as<float>() + token * hidden;
    const Row ours = layer.forward(Row(first, first + hidden));
    double error = 0;
    double norm = 0;
    for (std::int64_t h = 0; h < hidden; ++h) {
      const auto theirs = static_cast<double>(y.as<float>()[token * hidden + h]);
      error += std::pow(ours[static_cast<std::size_t>(h)] - theirs, 2);
      norm += theirs * theirs;
    }
    EXPECT_GT(norm, 0.1);
    // They compute in fp32: some 1e-7 in a row, while a value in a wrong place is off by the norm.
    EXPECT_TRUE(std::sqrt(error / norm) <= 1e-5)
        << "token " << token << ": " << std::sqrt(error / norm);
  }
}

}  // namespace
}  // namespace moe::checkpoint
