#include "core/workload.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "core/check.h"
#include "core/rng.h"
#include "core/scalar.h"
#include "core/weight_tensors.h"

namespace moe {
namespace {

enum Stream : std::uint64_t {
  kRouterStream,
  kGateStream,
  kUpStream,
  kDownStream,
  kSkewStream,
  kGammaStream = 8,  // and the two after it
  kHotStream = 11,
  kRouteStream = 12,
  kInputStream = 16,
  // Inputs are numbered upwards from there; these are far away.
  kRouterBiasStream = 1 << 20,
  kSelectionBiasStream,
  kGateBiasStream,
  kUpBiasStream,
  kDownBiasStream,
  kSharedGateStream,
  kSharedUpStream,
  kSharedDownStream,
  kSharedSwitchStream,
  kGivenStream
};

/// Standard deviation of router logits. That of a Gumbel variable, pi/sqrt(6): with Gumbel noise,
/// top-k of log p + noise draws K experts without replacement with probability ~ p, and normal
/// noise of the same width comes close. It also gives a trained router's spread of top-k weights.
constexpr double kLogitDeviation = 1.2825498301618641;
/// E[silu(a)^2] for a ~ N(0,1), by numerical integration; with an independent unit up it is the
/// variance of silu(gate)*up.
constexpr double kSwiGluVariance = 0.35577552;

/// Standard deviations of biases: of logits and of what the projections give, beside a deviation of 1,
/// and of scores, which lie between 0 and about 2.
constexpr double kBiasDeviation = 0.5;
constexpr double kSelectionBiasDeviation = 0.1;

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

/// Of a trace: logits of experts that were not chosen, and the least of one that was (8 is 6
/// standard deviations of uniform routing; a weight below e^-16 of the largest is no weight).
constexpr double kLogitNotChosen = -24;
constexpr double kLeastLogitChosen = -16;
/// Keeps the features that carry logits within [-1, 1], exactly in any binary format.
constexpr double kTraceScale = 32;
/// Below this, relative to the largest, a bias means never: 13 standard deviations of the difference
/// of two logits.
constexpr double kBiasNever = 24;

/// Ranks dealt out by a seeded shuffle, so that the busy expert is not always number 0.
std::vector<std::int64_t> shuffled_ranks(std::int64_t experts, std::uint64_t seed) {
  std::vector<std::int64_t> rank(static_cast<std::size_t>(experts));
  std::iota(rank.begin(), rank.end(), std::int64_t{0});
  for (std::size_t i = rank.size(); i > 1; --i) {
    std::swap(rank[i - 1], rank[random_bits(seed, kSkewStream, i) % i]);
  }
  return rank;
}

/// The logarithm of a draw from the gamma distribution (Marsaglia and Tsang 2000, ACM TOMS 26(3); below
/// a shape of 1 by Gamma(a) = Gamma(a+1) * U^(1/a), whose logarithm does not underflow).
double log_gamma_draw(double shape, std::uint64_t seed, std::uint64_t number) {
  constexpr std::uint64_t kTries = 64;  // each succeeds with more than 95 %
  const double raised = shape < 1 ? shape + 1 : shape;
  const double d = raised - 1.0 / 3;
  const double c = 1 / std::sqrt(9 * d);
  double log_draw = std::log(d);
  for (std::uint64_t i = number * kTries; i < (number + 1) * kTries; ++i) {
    const double normal = random_normal(seed, kGammaStream, i);
    const double v = std::pow(1 + c * normal, 3);
    const double u = random_uniform(seed, kGammaStream + 1, i);
    if (v > 0 && std::log(u) < 0.5 * normal * normal + d - d * v + d * std::log(v)) {
      log_draw = std::log(d * v);
      break;
    }
  }
  if (shape < 1) log_draw += std::log(random_uniform(seed, kGammaStream + 2, number)) / shape;
  return log_draw;
}

/// The bias of the hot experts with which they get their share of the routed rows, by bisection on
/// simulated logits.
double hot_bias(const Skew& skew, const Shape& shape, std::uint64_t seed) {
  constexpr std::uint64_t kTrials = 2048;
  const auto choices = static_cast<std::size_t>(shape.top_k);
  const auto hot_count = static_cast<std::size_t>(skew.hot_experts);
  const auto experts = static_cast<std::size_t>(shape.experts);
  // The largest logits of both groups, trial by trial, descending: more than K are never chosen.
  const std::size_t hot_kept = std::min(hot_count, choices);
  const std::size_t cold_kept = std::min(experts - hot_count, choices);
  std::vector<double> hot;
  std::vector<double> cold;
  std::vector<double> logits(experts);
  for (std::uint64_t trial = 0; trial < kTrials; ++trial) {
    for (std::size_t expert = 0; expert < experts; ++expert) {
      logits[expert] = kLogitDeviation * random_normal(seed, kHotStream, trial * experts + expert);
    }
    const auto middle = logits.begin() + static_cast<std::ptrdiff_t>(hot_count);
    std::sort(logits.begin(), middle, std::greater<>());
    std::sort(middle, logits.end(), std::greater<>());
    hot.insert(hot.end(), logits.begin(), logits.begin() + static_cast<std::ptrdiff_t>(hot_kept));
    cold.insert(cold.end(), middle, middle + static_cast<std::ptrdiff_t>(cold_kept));
  }
  const auto share = [&](double bias) {
    std::size_t chosen = 0;
    for (std::size_t trial = 0; trial < kTrials; ++trial) {
      // Hot number i is chosen when it beats the cold one that would have its place.
      for (std::size_t i = 0; i < hot_kept; ++i) {
        const std::size_t rival = choices - 1 - i;
        if (rival < cold_kept &&
            hot[trial * hot_kept + i] + bias <= cold[trial * cold_kept + rival]) {
          break;
        }
        ++chosen;
      }
    }
    return static_cast<double>(chosen) / static_cast<double>(kTrials * choices);
  };
  double low = -kBiasNever;
  double high = kBiasNever;
  for (int step = 0; step < 40; ++step) {
    const double middle = (low + high) / 2;
    (share(middle) < skew.hot_share ? low : high) = middle;
  }
  return high;
}

/// Router bias per expert that realises the skew, at most 0; empty where there is none.
std::vector<double> skew_bias(const Skew& skew, const Shape& shape, std::uint64_t seed) {
  if (skew.kind == Skew::Kind::kUniform || skew.kind == Skew::Kind::kTrace) return {};
  const std::vector<std::int64_t> rank = shuffled_ranks(shape.experts, seed);
  const double hot = skew.kind == Skew::Kind::kHot ? hot_bias(skew, shape, seed) : 0;
  std::vector<double> bias(rank.size());
  for (std::size_t expert = 0; expert < bias.size(); ++expert) {
    switch (skew.kind) {
      case Skew::Kind::kZipf:
        bias[expert] = -skew.exponent * std::log(static_cast<double>(rank[expert] + 1));
        break;
      case Skew::Kind::kHot:
        bias[expert] = rank[expert] < skew.hot_experts ? hot : 0.0;
        break;
      case Skew::Kind::kDirichlet:
        bias[expert] = log_gamma_draw(skew.exponent, seed, expert);
        break;
      default:
        bias[expert] = rank[expert] == 0 ? kBiasNever : 0.0;
    }
  }
  if (skew.kind == Skew::Kind::kDirichlet) {
    const double most = *std::max_element(bias.begin(), bias.end());
    for (double& value : bias) value = std::max(value - most, -kBiasNever);
  }
  return bias;
}

/// Logits of recorded token `token`, E of them.
std::vector<double> trace_logits(const RouteTrace& trace, std::int64_t token,
                                 std::int64_t experts) {
  std::vector<double> logits(static_cast<std::size_t>(experts), kLogitNotChosen);
  const std::int64_t first = token * trace.top_k;
  const float* weights = trace.weights.data() + first;
  const double most = *std::max_element(weights, weights + trace.top_k);
  for (std::int64_t slot = 0; slot < trace.top_k; ++slot) {
    const auto expert =
        static_cast<std::size_t>(trace.indices[static_cast<std::size_t>(first + slot)]);
    logits[expert] = std::max(std::log(weights[slot] / most), kLeastLogitChosen);
  }
  return logits;
}

/// act for one gate and up value.
double activate(const Activation& activation, double gate, double up) {
  switch (activation.kind) {
    case Activation::Kind::kSwiGLU: {
      const double limit = activation.limit;
      const double g = std::min(gate, limit);
      const double u = std::clamp(up, -limit, limit) + activation.up_offset;
      return g / (1 + std::exp(-activation.alpha * g)) * u;
    }
    case Activation::Kind::kGeGLU:
      return 0.5 * gate * (1 + std::erf(gate / std::sqrt(2.0))) * up;
    case Activation::Kind::kReLU2:
      return up > 0 ? up * up : 0;
  }
  return 0;
}

/// E[act^2] for gate and up ~ N(0, 1), with biases N(0, 1 + kBiasDeviation^2).
double activation_variance(const Activation& activation, bool biased) {
  if (activation == Activation{} && !biased) return kSwiGluVariance;
  const std::vector<float>& normal = normal_quantiles();
  const double deviation = biased ? std::sqrt(1 + kBiasDeviation * kBiasDeviation) : 1.0;
  constexpr std::size_t kSteps = 256;
  double total = 0;
  for (std::size_t i = 0; i < kSteps; ++i) {
    for (std::size_t j = 0; j < kSteps; ++j) {
      const std::size_t step = normal.size() / kSteps;
      const double act = activate(activation, deviation * normal[i * step + step / 2],
                                  deviation * normal[j * step + step / 2]);
      total += act * act;
    }
  }
  return total / (kSteps * kSteps);
}

/// A score as far as its size goes: logits of chosen experts -> weights before renormalisation.
double score_of(const Router& router, double logit, double largest, double exponentials) {
  switch (router.scoring) {
    case Scoring::kSigmoid:
      return 1 / (1 + std::exp(-logit));
    case Scoring::kSqrtSoftplus:
      return std::sqrt(std::log1p(std::exp(logit)));
    case Scoring::kSoftmax:
      return std::exp(logit - largest) / (router.renormalise ? 1 : exponentials);
    case Scoring::kSparseMixer:
    case Scoring::kGiven:
      break;
  }
  return std::exp(logit - largest);
}

double mean_squared_weights(const RouteTrace& trace) {
  double total = 0;
  for (std::int64_t token = 0; token < trace.tokens; ++token) {
    const float* weights = trace.weights.data() + token * trace.top_k;
    double sum = 0;
    double squares = 0;
    for (std::int64_t slot = 0; slot < trace.top_k; ++slot) {
      sum += weights[slot];
      squares += static_cast<double>(weights[slot]) * weights[slot];
    }
    total += squares / (sum * sum);
  }
  return total / static_cast<double>(trace.tokens);
}

/// Mean over tokens of the sum of squared top-k weights, simulated on the distribution of logits
/// that make_weights and make_input produce. Groups and biases of the router are left out.
double mean_squared_weights(const Problem& problem, std::uint64_t seed,
                            const std::vector<double>& bias) {
  const Shape& shape = problem.shape;
  const Router& router = problem.router;
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
    double exponentials = 0;
    for (const double logit : logits) exponentials += std::exp(logit - logits[0]);
    double sum = 0;
    double squares = 0;
    for (std::int64_t slot = 0; slot < shape.top_k; ++slot) {
      const double weight =
          score_of(router, logits[static_cast<std::size_t>(slot)], logits[0], exponentials);
      sum += weight;
      squares += weight * weight;
    }
    const double scale = router.scale * (router.renormalise ? 1 / sum : 1);
    total += squares * scale * scale;
  }
  return total / kTrials;
}

}  // namespace

namespace {

/// The whole of `text` as a number; nullopt when it is none.
template <class Number>
std::optional<Number> number_in(std::string_view text) {
  Number value{};
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) return std::nullopt;
  return value;
}

/// What stands behind "NAME:"; nullopt when `text` does not begin so.
std::optional<std::string_view> argument_of(std::string_view text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return std::nullopt;
  return text.substr(prefix.size());
}

}  // namespace

Skew Skew::parse(std::string_view text) {
  if (text == "uniform") return {};
  if (text == "one-expert") return {.kind = Kind::kOneExpert};
  if (const auto argument = argument_of(text, "zipf:")) {
    const double exponent = number_in<double>(*argument).value_or(0);
    MOE_CHECK(exponent > 0 && exponent <= 10,
              "skew '{}': the exponent must be a number above 0 and at most 10", text);
    return {.kind = Kind::kZipf, .exponent = exponent};
  }
  if (const auto argument = argument_of(text, "dirichlet:")) {
    const double concentration = number_in<double>(*argument).value_or(0);
    MOE_CHECK(concentration > 0 && concentration <= 1000,
              "skew '{}': the concentration must be a number above 0 and at most 1000", text);
    return {.kind = Kind::kDirichlet, .exponent = concentration};
  }
  if (const auto argument = argument_of(text, "hot:")) {
    const std::size_t comma = std::min(argument->find(','), argument->size());
    const std::string_view share = argument->substr(std::min(comma + 1, argument->size()));
    Skew skew{.kind = Kind::kHot,
              .hot_experts = number_in<std::int64_t>(argument->substr(0, comma)).value_or(0),
              .hot_share = number_in<double>(share).value_or(0)};
    MOE_CHECK(skew.hot_experts >= 1 && skew.hot_share > 0 && skew.hot_share <= 1,
              "skew '{}' is not hot:N,P with N experts that get a share P of the rows, 0 < P <= 1",
              text);
    return skew;
  }
  if (const auto argument = argument_of(text, "trace:")) {
    MOE_CHECK(!argument->empty(), "skew 'trace:' names no file");
    return {.kind = Kind::kTrace,
            .trace_path = std::string(*argument),
            .trace = std::make_shared<const RouteTrace>(read_trace(std::string(*argument)))};
  }
  fail(ErrorCode::kInvalidArgument,
       "unknown skew '{}'; use uniform, zipf:S, hot:N,P, dirichlet:A, one-expert or trace:FILE",
       text);
}

std::string Skew::describe() const {
  switch (kind) {
    case Kind::kUniform:
      return "uniform";
    case Kind::kZipf:
      return fmt::format("zipf:{}", exponent);
    case Kind::kHot:
      return fmt::format("hot:{},{}", hot_experts, hot_share);
    case Kind::kDirichlet:
      return fmt::format("dirichlet:{}", exponent);
    case Kind::kOneExpert:
      return "one-expert";
    case Kind::kTrace:
      return "trace:" + trace_path;
  }
  return {};
}

void Skew::check(const Shape& shape) const {
  if (kind == Kind::kHot) {
    MOE_CHECK(hot_experts < shape.experts, "skew {}: {} hot experts of {}", describe(), hot_experts,
              shape.experts);
    // Choices of a token are distinct: a group of N takes at most N of its K, and the others what
    // does not fit outside of it.
    const auto choices = static_cast<double>(shape.top_k);
    const double most = static_cast<double>(std::min(hot_experts, shape.top_k)) / choices;
    const std::int64_t others = shape.experts - hot_experts;
    const double least =
        static_cast<double>(std::max<std::int64_t>(0, shape.top_k - others)) / choices;
    MOE_CHECK(hot_share <= most && hot_share >= least,
              "skew {}: with top_k={} and experts={}, {} experts get a share of {:g} to {:g}",
              describe(), shape.top_k, shape.experts, hot_experts, least, most);
  }
  if (kind == Kind::kTrace) {
    MOE_CHECK(trace->top_k == shape.top_k, "{} has {} choices a token, top_k={}", trace_path,
              trace->top_k, shape.top_k);
    MOE_CHECK(trace->experts <= shape.experts, "{} is of {} experts, experts={}", trace_path,
              trace->experts, shape.experts);
    MOE_CHECK(2 * shape.experts <= shape.hidden,
              "skew {}: a trace needs two features per expert, hidden={} is below 2 x experts={}",
              describe(), shape.hidden, shape.experts);
  }
}

OwnedWeights make_weights(const Problem& problem, std::uint64_t seed, const Skew& skew) {
  const Shape& shape = problem.shape;
  validate(problem);
  skew.check(shape);
  const bool traced = skew.kind == Skew::Kind::kTrace;
  MOE_CHECK(!traced || problem.router == Router{},
            "skew {}: a trace is replayed through the router softmax, not {}", skew.describe(),
            to_string(problem.router));
  const auto hidden = static_cast<double>(shape.hidden);
  const auto intermediate = static_cast<double>(shape.intermediate);
  const std::vector<double> bias = skew_bias(skew, shape, seed);
  const double squared_weights =
      traced ? mean_squared_weights(*skew.trace) : mean_squared_weights(problem, seed, bias);
  const double act_variance = activation_variance(problem.activation, problem.expert_bias);
  const double output_variance = intermediate * act_variance * squared_weights;

  OwnedWeights weights;
  const auto fill = [&](Tensor& tensor, const char* name, std::uint64_t stream, double deviation) {
    for (const WeightTensor& one : weight_tensors(problem)) {
      if (std::string_view(name) != one.name) continue;
      const auto& dims = one.expected.dims;
      tensor = one.expected.rank == 3   ? Tensor(one.expected.dtype, {dims[0], dims[1], dims[2]})
               : one.expected.rank == 2 ? Tensor(one.expected.dtype, {dims[0], dims[1]})
                                        : Tensor(one.expected.dtype, {dims[0]});
      fill_normal(tensor.view(), seed, stream, deviation);
    }
  };
  const double projection = 1.0 / std::sqrt(hidden);
  fill(weights.router, "router", kRouterStream, traced ? 0.0 : kLogitDeviation * projection);
  fill(weights.gate, "gate", kGateStream, projection);
  fill(weights.up, "up", kUpStream, projection);
  fill(weights.down, "down", kDownStream, 1.0 / std::sqrt(output_variance));
  fill(weights.router_bias, "router_bias", kRouterBiasStream, kBiasDeviation);
  fill(weights.selection_bias, "selection_bias", kSelectionBiasStream, kSelectionBiasDeviation);
  fill(weights.gate_bias, "gate_bias", kGateBiasStream, kBiasDeviation);
  fill(weights.up_bias, "up_bias", kUpBiasStream, kBiasDeviation);
  fill(weights.down_bias, "down_bias", kDownBiasStream, kBiasDeviation);
  fill(weights.shared_gate, "shared_gate", kSharedGateStream, projection);
  fill(weights.shared_up, "shared_up", kSharedUpStream, projection);
  fill(weights.shared_down, "shared_down", kSharedDownStream,
       1.0 / std::sqrt(static_cast<double>(problem.shared_intermediate) *
                       activation_variance(problem.activation, false)));
  fill(weights.shared_switch, "shared_switch", kSharedSwitchStream, projection);
  if (problem.router.scoring == Scoring::kGiven) return weights;
  for (std::size_t expert = 0; expert < bias.size(); ++expert) {
    set_element(weights.router.view(), static_cast<std::int64_t>(expert) * shape.hidden,
                bias[expert]);
  }
  for (std::int64_t expert = 0; traced && expert < shape.experts; ++expert) {
    set_element(weights.router.view(), expert * shape.hidden + expert, kTraceScale);
  }
  return weights;
}

OwnedRoutes make_routes(const Shape& shape, std::uint64_t seed, std::uint64_t variant) {
  OwnedRoutes routes;
  std::vector<std::int32_t> order(static_cast<std::size_t>(shape.experts));
  std::uint64_t draw = 0;
  const auto random = [&] { return random_bits(seed, kGivenStream + variant, draw++); };
  for (std::int64_t token = 0; token < shape.tokens; ++token) {
    std::iota(order.begin(), order.end(), 0);
    const bool one_expert = random() % 16 == 0;
    float sum = 0;
    const std::size_t first = routes.weights.size();
    for (std::size_t slot = 0; slot < static_cast<std::size_t>(shape.top_k); ++slot) {
      std::swap(order[slot], order[slot + random() % (order.size() - slot)]);
      const bool unused = random() % 8 == 0;
      routes.experts.push_back(unused ? -1 : order[one_expert ? 0 : slot]);
      // What stands beside an unused slot is nobody's to read.
      routes.weights.push_back(unused ? std::numeric_limits<float>::quiet_NaN()
                                      : 0.25F + static_cast<float>(random() % 1024) / 1024);
      if (!unused) sum += routes.weights.back();
    }
    for (std::size_t i = first; i < routes.weights.size(); ++i) routes.weights[i] /= sum;
  }
  return routes;
}

Tensor make_input(const Problem& problem, std::uint64_t seed, std::uint64_t variant,
                  const Skew& skew) {
  const Shape& shape = problem.shape;
  skew.check(shape);
  Tensor x(problem.dtype, {shape.tokens, shape.hidden});
  fill_normal(x.view(), seed, kInputStream + variant, 1.0);
  if (skew.kind == Skew::Kind::kTrace) {
    const auto start = static_cast<std::int64_t>(variant) * shape.tokens;
    for (std::int64_t token = 0; token < shape.tokens; ++token) {
      const std::vector<double> logits =
          trace_logits(*skew.trace, (start + token) % skew.trace->tokens, shape.experts);
      for (std::size_t expert = 0; expert < logits.size(); ++expert) {
        set_element(x.view(), token * shape.hidden + static_cast<std::int64_t>(expert),
                    logits[expert] / kTraceScale);
      }
    }
  } else if (skew.kind != Skew::Kind::kUniform) {
    for (std::int64_t token = 0; token < shape.tokens; ++token) {
      set_element(x.view(), token * shape.hidden, 1.0);
    }
  }
  return x;
}

RouteTrace draw_routes(const Shape& shape, std::uint64_t seed, const Skew& skew) {
  validate(shape);
  skew.check(shape);
  MOE_CHECK(skew.kind != Skew::Kind::kTrace, "{} is a trace already", skew.describe());
  const std::vector<double> bias = skew_bias(skew, shape, seed);
  const auto experts = static_cast<std::uint64_t>(shape.experts);
  RouteTrace trace{.tokens = shape.tokens, .experts = shape.experts, .top_k = shape.top_k};
  std::vector<double> logits(static_cast<std::size_t>(experts));
  std::vector<std::int32_t> order(logits.size());
  for (std::uint64_t token = 0; token < static_cast<std::uint64_t>(shape.tokens); ++token) {
    for (std::size_t expert = 0; expert < logits.size(); ++expert) {
      logits[expert] =
          (bias.empty() ? 0.0 : bias[expert]) +
          kLogitDeviation * random_normal(seed, kRouteStream, token * experts + expert);
    }
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + shape.top_k, order.end(),
                      [&](std::int32_t a, std::int32_t b) {
                        const double left = logits[static_cast<std::size_t>(a)];
                        const double right = logits[static_cast<std::size_t>(b)];
                        return left > right || (left == right && a < b);
                      });
    const double most = logits[static_cast<std::size_t>(order.front())];
    double sum = 0;
    for (std::int64_t slot = 0; slot < shape.top_k; ++slot) {
      sum +=
          std::exp(logits[static_cast<std::size_t>(order[static_cast<std::size_t>(slot)])] - most);
    }
    for (std::int64_t slot = 0; slot < shape.top_k; ++slot) {
      const std::int32_t expert = order[static_cast<std::size_t>(slot)];
      trace.indices.push_back(expert);
      trace.weights.push_back(
          static_cast<float>(std::exp(logits[static_cast<std::size_t>(expert)] - most) / sum));
    }
  }
  return trace;
}

}  // namespace moe
