#include "cuda/grouped_level.h"

#include <utility>

namespace moe::cuda {

MemoryNeeds GroupedLevel::memory(const Problem& problem, const ExecutionOptions& execution) const {
  ArenaPlan plan;
  static_cast<void>(carve(plan, problem, device_of(execution).facts()));
  return {.workspace = plan.bytes(),
          .prepared = kBasePrepared + gate_up_bytes(problem) +
                      shared_down_bytes(problem, StoredWidths::of(problem)) + kSpecialisedBytes};
}

void GroupedLevel::keep_experts(std::unique_ptr<LayerKernels> kernels, int streams, int launchers) {
  kernels_ = std::move(kernels);
  packed_ = pack_gate_up(problem_, weights_, stream());
  shared_down_ = pack_shared_down(problem_, weights_, StoredWidths::of(problem_), stream());
  gemms_.emplace(*library_, problem_,
                 ExpertGemms::Matrices{packed_.data(), weights_.down.data, shared_down_.data()},
                 streams, launchers);
}

void GroupedLevel::forward(Context& context, const TensorView& x, const TensorView& y) {
  const Shape& shape = routed_;
  const std::int64_t tokens = x.dim(0);
  const std::int64_t routed = tokens * shape.top_k;
  const RoutedBuffers b = carve(context.arena, problem_, device_->facts());
  const ExpertSchedule how = schedule(tokens);

  const RoutingInputs in = router_products(context.routes, x, 0, tokens, routing_of(b), stream());
  kernels_->route(in, b, tokens, HostReads::kOffsets, stream());
  context.record("route", static_cast<std::uint64_t>(routed) * 8, [&] {
    return fmt::format("top {} of {}, {}", shape.top_k, shape.experts, kernels_->describe());
  });
  // Queued before the wait: the device has this to do while the host learns the counts.
  kernels_->permute(x, b, stream());
  context.record("permute", element_bytes(routed * shape.hidden),
                 [&] { return fmt::format("{} rows by expert", routed); });
  gemms_->fork(how, stream());
  const std::int32_t* const offsets = kernels_->wait_for_offsets(stream());
  context.record("wait", static_cast<std::uint64_t>(shape.experts + 1) * sizeof(std::int32_t),
                 [] { return std::string("the host reads expert_offsets"); });
  gemms_->run(how, offsets, b, *kernels_, stream(), &context);
  kernels_->combine(b, y, stream());
  context.record("unpermute", y.bytes(), [&] {
    return fmt::format("{} tokens, weighted sum of {} rows", tokens, shape.top_k);
  });
}

}  // namespace moe::cuda
