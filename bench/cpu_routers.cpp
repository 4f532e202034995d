// How long the CPU levels' routers take from logits to experts and weights, beside the default router.
//
//   ninja -C build/cpu cpu_routers && build/cpu/cpu_routers [T E K]      (default 16384 256 8)
//
// One thread; routers in turn, so that what else the machine does meets all of them; medians. Prints a
// Markdown table. Timed is cpu::choose_experts() on logits that lie in memory as the router's product
// leaves them (a copy of them is made before each time, outside of it).
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/rng.h"
#include "cpu/ops/router.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 15;
constexpr const char* kRouters[] = {
    "softmax",
    "softmax,bias",
    "softmax,raw",
    "softmax,raw,groups=8/3,scale=16",
    "sigmoid,raw",
    "sigmoid,selection-bias",
    "sigmoid,selection-bias,groups=8/4,scale=2.5",
    "sqrtsoftplus,selection-bias,scale=1.5",
    "sparsemixer",
};

struct Timed {
  std::string router;
  moe::cpu::RouterSetup setup;
  std::vector<double> us;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int count, char** arguments) {
  const auto size = [&](int index, std::int64_t otherwise) {
    return count > index ? std::atoll(arguments[index]) : otherwise;
  };
  const moe::Shape shape{size(1, 16384), 1, 1, size(2, 256), size(3, 8)};
  const auto rows = static_cast<std::size_t>(shape.tokens);
  std::vector<float> logits(rows * static_cast<std::size_t>(shape.experts));
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(moe::random_normal(1, 0, i) * 1.28);
  }
  std::vector<float> bias(static_cast<std::size_t>(shape.experts));
  for (std::size_t i = 0; i < bias.size(); ++i) {
    bias[i] = static_cast<float>(moe::random_normal(1, 1, i) * 0.1);
  }
  const moe::TensorView biases(bias.data(), moe::DType::kF32, {shape.experts});
  std::vector<Timed> timed;
  for (const char* router : kRouters) {
    moe::Problem problem{.shape = shape};
    problem.router = moe::parse_router(router);
    moe::validate(problem);
    timed.push_back({router,
                     {&moe::cpu::kernels_for(moe::best_isa()),
                      problem,
                      {.router_bias = biases, .selection_bias = biases}},
                     {}});
  }
  std::vector<float> scratch(logits.size());
  std::vector<std::int32_t> experts(static_cast<std::size_t>(shape.routed_rows()));
  std::vector<float> weights(experts.size());
  for (int round = 0; round < kRounds; ++round) {
    for (Timed& one : timed) {
      std::copy(logits.begin(), logits.end(), scratch.begin());
      const auto start = Clock::now();
      moe::cpu::choose_experts(one.setup, {}, 0, shape.tokens, scratch.data(), {},
                               {experts.data(), weights.data(), nullptr});
      one.us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
  }
  const double plain = median(timed.front().us);
  fmt::print("T={} E={} K={}, one thread, isa {}, median of {}\n\n", shape.tokens, shape.experts,
             shape.top_k, moe::name_of(moe::best_isa()), kRounds);
  fmt::print("| router | time | over softmax |\n|---|---|---|\n");
  for (const Timed& one : timed) {
    fmt::print("| `{}` | {:.0f} us | {:.2f}x |\n", one.router, median(one.us),
               median(one.us) / plain);
  }
  return 0;
}
