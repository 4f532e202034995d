#include "cuda/level_base.h"

#include "core/check.h"
#include "cuda/ops/router.h"
#include "cuda/ops/routing.h"

namespace moe::cuda {

std::string CudaLevel::unsupported(const Problem& problem, const ExecutionOptions&) const {
  const Shape& shape = problem.shape;
  if (shape.experts > kMaxExperts) {
    return fmt::format("the routing kernels hold at most {} experts, not {}", kMaxExperts,
                       shape.experts);
  }
  if (shape.routed_rows() > INT32_MAX) {
    return fmt::format("{} routed rows exceed 32-bit row numbers", shape.routed_rows());
  }
  const Router& router = problem.router;
  if (router != Router{} && shape.top_k > kMostRuleChoices) {
    return fmt::format("router {} chooses at most {} experts, not {}", to_string(router),
                       kMostRuleChoices, shape.top_k);
  }
  if (router.groups > kMostRuleGroups) {
    return fmt::format("the routing kernels hold at most {} groups, not {}", kMostRuleGroups,
                       router.groups);
  }
  return {};
}

std::string CudaLevel::isa() const {
  return fmt::format("sm_{}{}", device_->facts().major, device_->facts().minor);
}

void CudaLevel::keep(const Problem& problem, const Weights& weights,
                     const ExecutionOptions& execution) {
  problem_ = problem;
  weights_ = weights;
  device_ = &device_of(execution);
  library_.emplace();
  router_.emplace(*library_, MatmulSpec{.n = problem.shape.experts,
                                        .k = problem.shape.hidden,
                                        .in = problem.dtype,
                                        .out = DType::kF32});
  router_->choose_up_to(problem.shape.tokens);
}

void CudaLevel::router_product(const TensorView& x, std::int64_t first_token, std::int64_t tokens,
                               float* logits, cudaStream_t stream) {
  router_->run(x.as<const std::byte>() + element_bytes(first_token * problem_.shape.hidden),
               weights_.router.data, logits, tokens, stream);
}

void CudaLevel::choose(std::int64_t tokens, const Routing& out, cudaStream_t stream) {
  const Shape& shape = problem_.shape;
  if (out.permutation.expert_offsets == nullptr) {
    choose_experts(RouterRule::of(problem_.router, weights_), out.logits, tokens, shape.experts,
                   shape.top_k, out.topk_idx, out.topk_weights, stream);
  } else {
    route_rows(out.logits, tokens, shape.experts, shape.top_k, out.topk_idx, out.topk_weights,
               out.permutation, device_->facts(), stream,
               RouterRule::of(problem_.router, weights_));
  }
}

void CudaLevel::route(Context& context, const TensorView& x, std::int64_t first_token,
                      std::int64_t tokens, const Routing& out) {
  const Shape& shape = problem_.shape;
  router_product(x, first_token, tokens, out.logits, stream());
  choose(tokens, out, stream());
  context.record("route", static_cast<std::uint64_t>(tokens * shape.top_k) * 8, [&] {
    return fmt::format("tokens {}..{}, top {} of {}", first_token, first_token + tokens,
                       shape.top_k, shape.experts);
  });
}

}  // namespace moe::cuda
