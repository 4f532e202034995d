#include "cuda/level_base.h"

#include "core/check.h"
#include "cuda/ops/router.h"
#include "cuda/ops/routing.h"

namespace moe::cuda {

std::string CudaLevel::unsupported(const Problem& problem, const ExecutionOptions&) const {
  const Shape shape = with_shared_slots(problem);
  if (shape.experts > kMaxExperts) {
    return fmt::format(
        "the routing kernels hold at most {} experts, not {}{}", kMaxExperts, shape.experts,
        problem.shared_intermediate > 0 ? " (with the parts of the shared one)" : "");
  }
  if (shape.routed_rows() > INT32_MAX) {
    return fmt::format("{} routed rows exceed 32-bit row numbers", shape.routed_rows());
  }
  const Router& router = problem.router;
  Router plain;
  plain.weight_on_input = router.weight_on_input;
  const bool chosen_by_rule = router != plain && router.scoring != Scoring::kGiven;
  if (chosen_by_rule && problem.shape.top_k > kMostRuleChoices) {
    return fmt::format("router {} chooses at most {} experts, not {}", to_string(router),
                       kMostRuleChoices, problem.shape.top_k);
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
  routed_ = with_shared_slots(problem);
  router_.emplace(problem, weights, device_->facts());
  if (problem.router.scoring == Scoring::kGiven) return;
  logits_.emplace(*library_, MatmulSpec{.n = problem.shape.experts,
                                        .k = problem.shape.hidden,
                                        .in = problem.dtype,
                                        .out = DType::kF32});
  logits_->choose_up_to(problem.shape.tokens);
}

RoutingInputs CudaLevel::router_products(const Routes& routes, const TensorView& x,
                                         std::int64_t first_token, std::int64_t tokens,
                                         const Routing& out, cudaStream_t stream) {
  const Shape& shape = problem_.shape;
  const std::byte* const rows = x.as<const std::byte>() + element_bytes(first_token * shape.hidden);
  RoutingInputs in;
  if (logits_) {
    logits_->run(rows, weights_.router.data, out.logits, tokens, stream);
    in.logits = out.logits;
  } else {
    in.routes = {routes.experts + first_token * shape.top_k,
                 routes.weights + first_token * shape.top_k};
  }
  if (problem_.shared_switch) {
    shared_switch_weights(problem_.dtype, rows, weights_.shared_switch.data, tokens, shape.hidden,
                          out.shared_weights, stream);
    in.shared_weights = out.shared_weights;
  }
  return in;
}

CudaLevel::TransientRouting CudaLevel::take_routing(Context& context, const MemoryPool& pool,
                                                    std::int64_t tokens) const {
  const auto take = [&](const char* what, std::int64_t numbers) {
    return allocate(context, pool, what, static_cast<std::uint64_t>(numbers) * sizeof(float));
  };
  TransientRouting taken;
  if (logits_) taken.logits = take("router_logits[T,E]", tokens * problem_.shape.experts);
  if (problem_.shared_switch) taken.shared_weights = take("shared_weights[T]", tokens);
  taken.topk_idx = take("topk_idx[T,K]", tokens * routed_.top_k);
  taken.topk_weights = take("topk_weights[T,K]", tokens * routed_.top_k);
  return taken;
}

std::uint64_t CudaLevel::routing_footprint(const Problem& problem) {
  const auto bytes = [](std::int64_t numbers) {
    return TransientBuffer::footprint(static_cast<std::uint64_t>(numbers) * sizeof(float));
  };
  const bool given = problem.router.scoring == Scoring::kGiven;
  return (given ? 0 : bytes(problem.shape.tokens * problem.shape.experts)) +
         (problem.shared_switch ? bytes(problem.shape.tokens) : 0) +
         2 * bytes(with_shared_slots(problem).routed_rows());
}

void CudaLevel::combine_slots_of(const void* y_rows, const std::int32_t* topk_idx,
                                 const float* topk_weights, std::int64_t tokens, void* y,
                                 cudaStream_t stream) const {
  const bool on_input = problem_.router.weight_on_input;
  CombineExtras extras;
  if (problem_.router.scoring == Scoring::kGiven || problem_.expert_bias || on_input) {
    extras = {.topk_idx = topk_idx,
              .row_bias = problem_.expert_bias ? weights_.down_bias.as<const float>() : nullptr,
              .biased = static_cast<int>(problem_.shape.experts)};
  }
  unpermute_rows(problem_.dtype, y_rows, nullptr, on_input ? nullptr : topk_weights, tokens,
                 routed_.top_k, problem_.shape.hidden, y, stream, extras);
}

RowExtras CudaLevel::row_extras(const std::int32_t* topk_idx, const float* topk_weights) const {
  RowExtras extras;
  const bool on_input = problem_.router.weight_on_input;
  if (problem_.router.scoring != Scoring::kGiven && !problem_.expert_bias && !on_input)
    return extras;
  extras.topk_idx = topk_idx;
  extras.biased = static_cast<int>(problem_.shape.experts);
  extras.bias_stride = problem_.shape.intermediate;
  if (on_input) extras.input_weights = topk_weights;
  if (problem_.expert_bias) {
    if (problem_.activation.gated()) extras.gate_bias = weights_.gate_bias.as<const float>();
    extras.up_bias = weights_.up_bias.as<const float>();
    extras.down_bias = weights_.down_bias.as<const float>();
  }
  return extras;
}

void CudaLevel::choose(const RoutingInputs& in, std::int64_t tokens, const Routing& out,
                       cudaStream_t stream) {
  if (out.permutation.expert_offsets == nullptr) {
    router_->choose(in, tokens, out.topk_idx, out.topk_weights, stream);
  } else {
    router_->route(in, tokens, out.topk_idx, out.topk_weights, out.permutation, stream);
  }
}

void CudaLevel::route(Context& context, const TensorView& x, std::int64_t first_token,
                      std::int64_t tokens, const Routing& out) {
  const RoutingInputs in = router_products(context.routes, x, first_token, tokens, out, stream());
  choose(in, tokens, out, stream());
  context.record("route", static_cast<std::uint64_t>(tokens * routed_.top_k) * 8, [&] {
    return fmt::format("tokens {}..{}, top {} of {}", first_token, first_token + tokens,
                       routed_.top_k, routed_.experts);
  });
}

}  // namespace moe::cuda
