// A forward of one's own, judged by the library: the fp64 oracle accepts it, and rejects it with one expert
// left out. Levels themselves are not pluggable from outside: their interface (src/core/level.h) hands out the
// arena, the device and the trace, changes with them, and is not installed. A new level is one file and one
// line in src/levels.def (docs/architecture.md); an implementation that stays outside is measured against the
// levels by `moe verify --io` or, in the program that owns it, like this.
#include <moe/moe.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

namespace {

/// Plain loops. Softmax over all experts, the top_k best, their weights renormalised; SwiGLU.
void own_forward(const moe::Shape& shape, const moe::Weights& weights, const float* x, float* y,
                 std::int64_t left_out = -1) {
  const std::int64_t hidden = shape.hidden;
  const std::int64_t inner = shape.intermediate;
  const auto dot = [](const float* a, const float* b, std::int64_t count) {
    return std::inner_product(a, a + count, b, 0.0);
  };
  std::vector<double> logits(static_cast<std::size_t>(shape.experts));
  std::vector<std::int64_t> order(logits.size());
  std::vector<float> h(static_cast<std::size_t>(inner));
  for (std::int64_t token = 0; token < shape.tokens; ++token) {
    const float* in = x + token * hidden;
    float* out = y + token * hidden;
    std::fill(out, out + hidden, 0.0F);
    for (std::int64_t e = 0; e < shape.experts; ++e) {
      logits[static_cast<std::size_t>(e)] =
          dot(weights.router.as<float>() + e * hidden, in, hidden);
    }
    const auto logit = [&](std::int64_t expert) {
      return logits[static_cast<std::size_t>(expert)];
    };
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return logit(a) > logit(b); });
    double sum = 0;
    for (std::int64_t k = 0; k < shape.top_k; ++k) {
      sum += std::exp(logit(order[static_cast<std::size_t>(k)]) - logit(order[0]));
    }
    for (std::int64_t k = 0; k < shape.top_k; ++k) {
      const std::int64_t expert = order[static_cast<std::size_t>(k)];
      if (expert == left_out) continue;
      const double weight = std::exp(logit(expert) - logit(order[0])) / sum;
      const std::int64_t matrix = expert * inner * hidden;
      for (std::int64_t i = 0; i < inner; ++i) {
        const double gate = dot(weights.gate.as<float>() + matrix + i * hidden, in, hidden);
        const double up = dot(weights.up.as<float>() + matrix + i * hidden, in, hidden);
        h[static_cast<std::size_t>(i)] = static_cast<float>(gate / (1 + std::exp(-gate)) * up);
      }
      for (std::int64_t o = 0; o < hidden; ++o) {
        const double value = dot(weights.down.as<float>() + matrix + o * inner, h.data(), inner);
        out[o] += static_cast<float>(weight * value);
      }
    }
  }
}

void fill(const moe::Tensor& tensor, unsigned state) {
  for (std::int64_t i = 0; i < tensor.view().elements(); ++i) {
    state = state * 1664525U + 1013904223U;
    tensor.as<float>()[i] = (static_cast<float>(state >> 8) / 8388608.0F - 1.0F) * 0.25F;
  }
}

}  // namespace

int main() try {
  moe::Problem problem;
  problem.shape = {.tokens = 24, .hidden = 48, .intermediate = 40, .experts = 6, .top_k = 2};
  const moe::Shape& shape = problem.shape;
  const moe::Tensor router(moe::DType::kF32, {shape.experts, shape.hidden});
  const moe::Tensor gate(moe::DType::kF32, {shape.experts, shape.intermediate, shape.hidden});
  const moe::Tensor up(moe::DType::kF32, {shape.experts, shape.intermediate, shape.hidden});
  const moe::Tensor down(moe::DType::kF32, {shape.experts, shape.hidden, shape.intermediate});
  const moe::Tensor x(moe::DType::kF32, {shape.tokens, shape.hidden});
  const moe::Tensor y(moe::DType::kF32, {shape.tokens, shape.hidden});
  unsigned seed = 1;
  for (const moe::Tensor* tensor : {&router, &gate, &up, &down, &x}) fill(*tensor, seed++);
  moe::Weights weights;
  weights.router = router.view();
  weights.gate = gate.view();
  weights.up = up.view();
  weights.down = down.view();

  const moe::Oracle oracle(problem, weights, x.view());
  moe::poison(y.view());
  own_forward(shape, weights, x.as<float>(), y.as<float>());
  const moe::Comparison right = oracle.compare(y.view());
  std::printf("own forward: %s\n", right.describe().c_str());
  moe::poison(y.view());
  own_forward(shape, weights, x.as<float>(), y.as<float>(), 0);
  const moe::Comparison wrong = oracle.compare(y.view());
  std::printf("without expert 0: %s\n", wrong.describe().c_str());
  return right.passed && !wrong.passed ? 0 : 1;
} catch (const moe::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
