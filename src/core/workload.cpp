#include "core/workload.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "core/rng.h"
#include "core/scalar.h"

namespace moe {
namespace {

enum Stream : std::uint64_t {
  kRouterStream,
  kGateStream,
  kUpStream,
  kDownStream,
  kSkewStream,
  kInputStream = 16
};

/// Standard deviation of router logits. That of a Gumbel variable, pi/sqrt(6): with Gumbel noise,
/// top-k of log p + noise draws K experts without replacement with probability ~ p, and normal
/// noise of the same width comes close. It also gives a trained router's spread of top-k weights.
constexpr double kLogitDeviation = 1.2825498301618641;
/// E[silu(a)^2] for a ~ N(0,1), by numerical integration; with an independent unit up it is the
/// variance of silu(gate)*up.
constexpr double kSwiGluVariance = 0.35577552;

/// Quantiles of the standard normal at (i + 0.5) / 65536: sixteen random bits pick one. Exact to
/// the table's resolution and an order of magnitude cheaper than a transform per value.
const std::vector<float>& normal_quantiles() {
  static const std::vector<float> table = [] {
    constexpr std::size_t kSize = 65536;
    std::vector<float> quantiles(kSize);
    double previous = -4.4;
    for (std::size_t i = 0; i < kSize; ++i) {
      const double probability = (static_cast<double>(i) + 0.5) / static_cast<double>(kSize);
      // Newton from the neighbour: the density is the derivative of the distribution function.
      double z = previous;
      for (int step = 0; step < 50; ++step) {
        const double error = 0.5 * std::erfc(-z / std::sqrt(2.0)) - probability;
        const double density = std::exp(-0.5 * z * z) / std::sqrt(2.0 * 3.14159265358979323846);
        const double change = error / density;
        z -= change;
        if (std::abs(change) < 1e-12) break;
      }
      quantiles[i] = static_cast<float>(z);
      previous = z;
    }
    return quantiles;
  }();
  return table;
}

template <class Element>
void fill_normal_as(Element* out, std::int64_t count, std::uint64_t seed, std::uint64_t stream,
                    double deviation) {
  const float* quantiles = normal_quantiles().data();
  const auto scale = static_cast<float>(deviation);
  const std::int64_t quads = (count + 3) / 4;
#pragma omp parallel for schedule(static)
  for (std::int64_t quad = 0; quad < quads; ++quad) {
    std::uint64_t bits = random_bits(seed, stream, static_cast<std::uint64_t>(quad));
    const std::int64_t end = std::min<std::int64_t>(4 * quad + 4, count);
    for (std::int64_t i = 4 * quad; i < end; ++i, bits >>= 16) {
      out[i] = from_float<Element>(scale * quantiles[bits & 0xffff]);
    }
  }
}

void fill_normal(const TensorView& out, std::uint64_t seed, std::uint64_t stream,
                 double deviation) {
  if (out.dtype == DType::kF32) {
    fill_normal_as(out.as<float>(), out.elements(), seed, stream, deviation);
  } else {
    fill_normal_as(out.as<BFloat16>(), out.elements(), seed, stream, deviation);
  }
}

void set_element(const TensorView& tensor, std::int64_t index, double value) {
  if (tensor.dtype == DType::kF32) {
    tensor.as<float>()[index] = static_cast<float>(value);
  } else {
    tensor.as<BFloat16>()[index] = to_bfloat16(static_cast<float>(value));
  }
}

/// Router bias per expert that realises the skew; empty for uniform routing.
std::vector<double> skew_bias(const Skew& skew, std::int64_t experts, std::uint64_t seed) {
  if (skew.kind == Skew::Kind::kUniform) return {};
  // Ranks are dealt out by a seeded shuffle, so that the busy expert is not always number 0.
  std::vector<std::int64_t> rank(static_cast<std::size_t>(experts));
  std::iota(rank.begin(), rank.end(), std::int64_t{0});
  for (std::size_t i = rank.size(); i > 1; --i) {
    std::swap(rank[i - 1], rank[random_bits(seed, kSkewStream, i) % i]);
  }
  std::vector<double> bias(rank.size());
  for (std::size_t expert = 0; expert < bias.size(); ++expert) {
    if (skew.kind == Skew::Kind::kZipf) {
      bias[expert] = -skew.exponent * std::log(static_cast<double>(rank[expert] + 1));
    } else {
      // 24 is 13 standard deviations of the difference of two logits: chosen by every token.
      bias[expert] = rank[expert] == 0 ? 24.0 : 0.0;
    }
  }
  return bias;
}

/// Mean over tokens of the sum of squared top-k weights, simulated on the distribution of logits
/// that make_weights and make_input produce.
double mean_squared_weights(const Shape& shape, std::uint64_t seed,
                            const std::vector<double>& bias) {
  constexpr int kTrials = 256;
  std::vector<double> logits(static_cast<std::size_t>(shape.experts));
  double total = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    for (std::size_t expert = 0; expert < logits.size(); ++expert) {
      logits[expert] =
          (bias.empty() ? 0.0 : bias[expert]) +
          kLogitDeviation *
              random_normal(seed, kSkewStream + 1,
                            static_cast<std::uint64_t>(trial) * logits.size() + expert);
    }
    std::partial_sort(logits.begin(), logits.begin() + shape.top_k, logits.end(), std::greater<>());
    double sum = 0;
    double squares = 0;
    for (std::int64_t slot = 0; slot < shape.top_k; ++slot) {
      const double weight = std::exp(logits[static_cast<std::size_t>(slot)] - logits[0]);
      sum += weight;
      squares += weight * weight;
    }
    total += squares / (sum * sum);
  }
  return total / kTrials;
}

}  // namespace

Skew Skew::parse(std::string_view text) {
  if (text == "uniform") return {};
  if (text == "one-expert") return {.kind = Kind::kOneExpert};
  constexpr std::string_view kZipfPrefix = "zipf:";
  if (text.starts_with(kZipfPrefix)) {
    const std::string_view number = text.substr(kZipfPrefix.size());
    double exponent = 0;
    const auto parsed = std::from_chars(number.data(), number.data() + number.size(), exponent);
    if (parsed.ec == std::errc() && parsed.ptr == number.data() + number.size() && exponent > 0 &&
        exponent <= 10) {
      return {.kind = Kind::kZipf, .exponent = exponent};
    }
    fail(ErrorCode::kInvalidArgument,
         "skew '{}': the exponent must be a number above 0 and at most 10", text);
  }
  fail(ErrorCode::kInvalidArgument, "unknown skew '{}'; use uniform, zipf:S or one-expert", text);
}

std::string Skew::describe() const {
  switch (kind) {
    case Kind::kUniform:
      return "uniform";
    case Kind::kZipf:
      return fmt::format("zipf:{}", exponent);
    case Kind::kOneExpert:
      return "one-expert";
  }
  return {};
}

OwnedWeights make_weights(const Problem& problem, std::uint64_t seed, const Skew& skew) {
  const Shape& shape = problem.shape;
  validate(shape);
  const auto hidden = static_cast<double>(shape.hidden);
  const auto intermediate = static_cast<double>(shape.intermediate);
  const std::vector<double> bias = skew_bias(skew, shape.experts, seed);
  const double output_variance =
      intermediate * kSwiGluVariance * mean_squared_weights(shape, seed, bias);

  OwnedWeights weights{
      .router = Tensor(problem.dtype, {shape.experts, shape.hidden}),
      .gate = Tensor(problem.dtype, {shape.experts, shape.intermediate, shape.hidden}),
      .up = Tensor(problem.dtype, {shape.experts, shape.intermediate, shape.hidden}),
      .down = Tensor(problem.dtype, {shape.experts, shape.hidden, shape.intermediate})};
  fill_normal(weights.router.view(), seed, kRouterStream, kLogitDeviation / std::sqrt(hidden));
  fill_normal(weights.gate.view(), seed, kGateStream, 1.0 / std::sqrt(hidden));
  fill_normal(weights.up.view(), seed, kUpStream, 1.0 / std::sqrt(hidden));
  fill_normal(weights.down.view(), seed, kDownStream, 1.0 / std::sqrt(output_variance));
  for (std::size_t expert = 0; expert < bias.size(); ++expert) {
    set_element(weights.router.view(), static_cast<std::int64_t>(expert) * shape.hidden,
                bias[expert]);
  }
  return weights;
}

Tensor make_input(const Problem& problem, std::uint64_t seed, std::uint64_t variant,
                  const Skew& skew) {
  const Shape& shape = problem.shape;
  Tensor x(problem.dtype, {shape.tokens, shape.hidden});
  fill_normal(x.view(), seed, kInputStream + variant, 1.0);
  if (skew.kind != Skew::Kind::kUniform) {
    for (std::int64_t token = 0; token < shape.tokens; ++token) {
      set_element(x.view(), token * shape.hidden, 1.0);
    }
  }
  return x;
}

}  // namespace moe
