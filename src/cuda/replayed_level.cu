#include "cuda/replayed_level.h"

#include <algorithm>

namespace moe::cuda {

void ReplayedLevel::keep_launch(const ExecutionOptions& execution) {
  launch_ = execution.launch == Launch::kEager ? Launch::kEager : Launch::kGraph;
  recorder_.emplace(unsigned{cudaStreamNonBlocking});
  known_.reserve(kMostGraphs);
}

void ReplayedLevel::forward(Context& context, const TensorView& x, const TensorView& y) {
  if (launch_ == Launch::kEager || context.trace != nullptr || is_capturing(stream())) {
    queue(context, x, y);
    return;
  }
  Known& entry = known({x.data, y.data, x.dim(0), context.routes.experts, context.routes.weights});
  const bool again = entry.last_use > 0;
  entry.last_use = ++uses_;
  if (!again) {
    queue(context, x, y);
    return;
  }
  if (!entry.graph) record(context, x, y, entry);
  entry.graph->launch(stream());
}

ReplayedLevel::Known& ReplayedLevel::known(const Operands& of) {
  const auto found = std::find_if(known_.begin(), known_.end(),
                                  [&](const Known& entry) { return entry.of == of; });
  if (found != known_.end()) return *found;
  if (known_.size() < kMostGraphs) return known_.emplace_back(Known{.of = of});
  Known& oldest =
      *std::min_element(known_.begin(), known_.end(),
                        [](const Known& a, const Known& b) { return a.last_use < b.last_use; });
  oldest = {.of = of};
  return oldest;
}

void ReplayedLevel::record(Context& context, const TensorView& x, const TensorView& y,
                           Known& entry) {
  const QueueElsewhere recording(*this, recorder());
  entry.graph.emplace(recorder(), [&] { queue(context, x, y); });
}

}  // namespace moe::cuda
