// How long the CPU levels' routers take from logits to experts and weights, beside the default router.
//
//   cpu_routers [--tokens 16384] [--experts 256] [--top-k 8] [--rounds 15]
// One thread; routers in turn, so that what else the machine does meets all of them; medians. Prints one
// line of JSON for the machine, then one for each router. Timed is cpu::choose_experts() on logits that
// lie in memory as the router's product leaves them (a copy of them is made before each time, outside of
// it).
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "arguments.h"
#include "core/rng.h"
#include "core/statistics.h"
#include "cpu/ops/router.h"
#include "moe/bench.h"

namespace {

using Clock = std::chrono::steady_clock;

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

void run(moe::Arguments arguments) {
  const moe::Shape shape{arguments.number("--tokens", 16384), 1, 1,
                         arguments.number("--experts", 256), arguments.number("--top-k", 8)};
  const std::int64_t rounds = arguments.number("--rounds", 15);
  const std::vector<std::string> words = arguments.words();
  MOE_CHECK(words.empty(), "'{}' is not an option", words.front());
  const moe::MachineInfo machine = moe::describe_machine();
  fmt::print(R"({{"cpu":"{}","kernel":"{}","threads":{},"compiler":"{}"}})"
             "\n",
             machine.cpu, machine.kernel, machine.threads, machine.compiler);
  std::vector<float> logits(static_cast<std::size_t>(shape.tokens * shape.experts));
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
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (Timed& one : timed) {
      std::copy(logits.begin(), logits.end(), scratch.begin());
      const auto start = Clock::now();
      moe::cpu::choose_experts(one.setup, {}, 0, shape.tokens, scratch.data(), {},
                               {experts.data(), weights.data(), nullptr});
      one.us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
  }
  const double plain = moe::median(timed.front().us);
  for (const Timed& one : timed) {
    const double us = moe::median(one.us);
    fmt::print(R"({{"router":"{}","tokens":{},"experts":{},"top_k":{},"isa":"{}","threads":1,)"
               R"("rounds":{},"median_us":{:.1f},"iqr_us":{:.1f},"over_softmax":{:.3f}}})"
               "\n",
               one.router, shape.tokens, shape.experts, shape.top_k, moe::name_of(moe::best_isa()),
               rounds, us, moe::interquartile_range(one.us), us / plain);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  run({argc, argv});
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "cpu_routers: {}\n", error.what());
  return 1;
}
