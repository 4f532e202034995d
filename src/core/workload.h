// Seeded weights and inputs for benches and tests, and the skew of their routing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/route_trace.h"
#include "moe/layer.h"

namespace moe {

/// How evenly tokens spread over experts. The skew lives in the data; the layer itself is unchanged.
/// For a bias per expert (all kinds but kUniform and kTrace), feature 0 of every token is 1 and the
/// router's column 0 carries the bias. For a trace, feature e of a token is its logit for expert e over
/// 32, and the router is 32 times the identity: the layer then chooses the recorded experts, with the
/// recorded weights (renormalised) up to the rounding of x.
struct Skew {
  enum class Kind { kUniform, kZipf, kHot, kDirichlet, kOneExpert, kTrace };
  Kind kind = Kind::kUniform;
  /// kZipf: expert of rank r is drawn with probability ~ r^-exponent (ranks are a seeded
  /// permutation). kDirichlet: probabilities are one draw from the symmetric Dirichlet distribution
  /// with this concentration; small is uneven.
  double exponent = 0.0;
  /// kHot: this many experts together get the share `hot_share` of all T*K routed rows.
  std::int64_t hot_experts = 0;
  double hot_share = 0.0;
  /// kTrace: input v takes the recorded tokens from v*T on, from the first again after the last.
  std::string trace_path{};
  std::shared_ptr<const RouteTrace> trace{};
  /// "uniform" | "zipf:S", 0 < S <= 10 | "hot:N,P", N experts, 0 < P <= 1 | "dirichlet:A",
  /// 0 < A <= 1000 | "one-expert" (one expert is chosen by every token, the other K-1 choices stay
  /// uniform) | "trace:FILE", which is read. Throws kInvalidArgument, and kIo for FILE.
  static Skew parse(std::string_view text);
  [[nodiscard]] std::string describe() const;
  /// Throws kInvalidArgument when routing of this shape cannot be skewed like that.
  void check(const Shape& shape) const;
};

/// Routes of shape.tokens tokens as the router would choose in data of this seed and skew, drawn from
/// the distribution of its logits without making weights and inputs. Not for kTrace.
[[nodiscard]] RouteTrace draw_routes(const Shape& shape, std::uint64_t seed, const Skew& skew);

/// Weights in the stored layout of moe::Weights, owned; tensors a problem does not have are empty.
struct OwnedWeights {
  Tensor router = {}, gate = {}, up = {}, down = {};
  Tensor router_bias = {}, selection_bias = {};
  Tensor gate_bias = {}, up_bias = {}, down_bias = {};
  Tensor shared_gate = {}, shared_up = {}, shared_down = {}, shared_switch = {};
  [[nodiscard]] Weights view() const {
    return {router.view(),       gate.view(),           up.view(),        down.view(),
            router_bias.view(),  selection_bias.view(), gate_bias.view(), up_bias.view(),
            down_bias.view(),    shared_gate.view(),    shared_up.view(), shared_down.view(),
            shared_switch.view()};
  }
};

/// Normal weights scaled so that gate, up and what the routed experts give have unit variance for x ~
/// N(0,1), and what the shared expert gives without its switch has. Biases are a tenth to half of that.
[[nodiscard]] OwnedWeights make_weights(const Problem& problem, std::uint64_t seed,
                                        const Skew& skew = {});
/// Experts and weights for Scoring::kGiven, owned.
struct OwnedRoutes {
  std::vector<std::int32_t> experts;  // [T,K]
  std::vector<float> weights;         // [T,K]
  [[nodiscard]] Routes view() const { return {experts.data(), weights.data()}; }
};
/// Random ones for every row: distinct experts with weights that sum to 1; one slot in eight is not
/// used, one row in sixteen takes one expert in all slots.
[[nodiscard]] OwnedRoutes make_routes(const Shape& shape, std::uint64_t seed,
                                      std::uint64_t variant);

/// x[T,H] ~ N(0,1). `variant` numbers independent inputs of one seed.
[[nodiscard]] Tensor make_input(const Problem& problem, std::uint64_t seed, std::uint64_t variant,
                                const Skew& skew = {});

}  // namespace moe
