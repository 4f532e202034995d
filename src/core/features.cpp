#include "core/check.h"
#include "core/level.h"

namespace moe {

std::string missing_features(const Features& features, const Problem& problem) {
  const Router& router = problem.router;
  std::string missing;
  const auto need = [&](bool asked, bool computed, const std::string& what) {
    if (asked && !computed) missing += (missing.empty() ? "" : ", ") + what;
  };
  const bool given = router.scoring == Scoring::kGiven;
  Router plain;
  plain.weight_on_input = router.weight_on_input;
  need(given, features.given_routes, "routes given by the caller");
  need(!given && router != plain, features.routers, "router " + to_string(router));
  need(router.weight_on_input, features.weight_on_input, "router weights on the experts' input");
  need(problem.activation.gated() && problem.activation != Activation{}, features.activations,
       "activation " + to_string(problem.activation));
  need(!problem.activation.gated(), features.ungated,
       "activation " + to_string(problem.activation));
  need(problem.expert_bias, features.expert_bias, "biases of the experts");
  need(problem.shared_intermediate > 0, features.shared_expert, "a shared expert");
  return missing.empty() ? "" : "this level does not compute: " + missing;
}

}  // namespace moe
