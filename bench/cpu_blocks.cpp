// What the blocks of real models cost a CPU level beside the plain layer (softmax router, SwiGLU): one
// line of JSON for the machine, then one for every block and number of tokens.
//   cpu_blocks [--tokens 512] [--shape 1024,256,16,4] [--dtype fp32] [--level compiled] [--isa auto]
//              [--threads 1] [--rounds 101] [--tune SECONDS]
// The block "plain" is a second plain layer: what it differs by is noise. Every forward of a block stands
// between two of the plain layer, and a round's ratio is its time over the mean of theirs, per useful FLOP
// where the block has more of them: a shared expert is work; router, activation and bias are not. Time is
// that of the thread on the CPU, so that other programs on the same core are not in it; with more than one
// thread it is that of the clock on the wall.
// "within" and "above" say where the 95 % interval of the median ratio lies beside 1.03.
#include <fmt/format.h>

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "arguments.h"
#include "core/memory.h"
#include "core/statistics.h"
#include "core/workload.h"
#include "moe/bench.h"
#include "moe/layer.h"

namespace moe {
namespace {

constexpr double kBound = 1.03;
constexpr std::size_t kFlushBytes = std::size_t{96} << 20;

struct Block {
  const char* name;
  const char* options;  // as of the command line; {} is the intermediate size of a shared expert
};
constexpr Block kBlocks[] = {
    {"plain", ""},
    {"softmax after top-k", "--router softmax,raw"},
    {"router bias", "--router softmax,bias"},
    {"deepseek-v2 router", "--router softmax,raw,groups=8/3,scale=16"},
    {"deepseek-v3 router", "--router sigmoid,selection-bias,groups=8/4,scale=2.5"},
    {"deepseek-v4 router", "--router sqrtsoftplus,selection-bias,scale=1.5"},
    {"llama-4 router", "--router sigmoid,raw,on-input"},
    {"given routes", "--router given"},
    {"geglu", "--activation geglu"},
    {"clamped swiglu", "--activation swiglu,alpha=1.702,limit=7,up=1"},
    {"relu2", "--activation relu2"},
    {"expert biases", "--expert-bias"},
    {"shared expert", "--shared {}"},
    {"shared expert, switch", "--shared {},switch"},
    {"gpt-oss", "--router softmax,bias --activation swiglu,alpha=1.702,limit=7,up=1 --expert-bias"},
    {"deepseek-v3", "--router sigmoid,selection-bias,groups=8/4,scale=2.5 --shared {}"},
};

double microseconds_now(int threads) {
  timespec now{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) * 1e-3;
}

Problem problem_of(const Block& block, const Problem& plain) {
  Problem problem = plain;
  set_block_options(problem, fmt::format(fmt::runtime(block.options), plain.shape.intermediate));
  validate(problem);
  return problem;
}

/// One layer, with the weights of all blocks cut down to what its problem has.
class Runner {
 public:
  Runner(LayerOptions options, const Problem& problem, Weights weights, const RouteTrace& trace)
      : flops_(useful_flops(problem)),
        x_(make_input(problem, 1, 0)),
        y_(problem.dtype, {problem.shape.tokens, problem.shape.hidden}) {
    if (problem.router.scoring == Scoring::kGiven) {
      weights.router = {};
      routes_ = {trace.indices.data(), trace.weights.data()};
    }
    if (!problem.router.bias) weights.router_bias = {};
    if (!problem.router.selection_bias) weights.selection_bias = {};
    if (!problem.expert_bias) weights.gate_bias = weights.up_bias = weights.down_bias = {};
    if (problem.shared_intermediate == 0) {
      weights.shared_gate = weights.shared_up = weights.shared_down = {};
    }
    if (!problem.activation.gated()) weights.gate = {};
    if (!problem.shared_switch) weights.shared_switch = {};
    options.problem = problem;
    layer_ = std::make_unique<Layer>(Layer::create(options, weights));
  }

  void forward() {
    if (routes_.experts != nullptr) {
      layer_->forward(x_.view(), y_.view(), routes_);
    } else {
      layer_->forward(x_.view(), y_.view());
    }
  }
  /// Microseconds of one forward that finds nothing of its layer in the caches: the plain layer runs
  /// every other time and would find more there than the blocks do.
  double sample(const HostBuffer& flush) {
    const auto* bytes = flush.as<const unsigned char>();
    unsigned sum = 0;
    for (std::size_t i = 0; i < flush.size(); i += 64) sum += bytes[i];
    flushed_ = sum;
    const int threads = layer_->threads();
    const double start = microseconds_now(threads);
    forward();
    return microseconds_now(threads) - start;
  }
  [[nodiscard]] double flops() const { return flops_; }
  [[nodiscard]] const Layer& layer() const { return *layer_; }

 private:
  double flops_;
  Tensor x_;
  Tensor y_;
  Routes routes_{};
  volatile unsigned flushed_ = 0;
  std::unique_ptr<Layer> layer_;
};

struct Settings {
  LayerOptions layer;
  Problem plain;
  int rounds = 0;
};

void measure(const Settings& settings) {
  const Problem& problem = settings.plain;
  Problem everything = problem;
  everything.router = parse_router("sigmoid,bias,selection-bias");
  everything.expert_bias = true;
  everything.shared_intermediate = problem.shape.intermediate;
  everything.shared_switch = true;
  const OwnedWeights weights = make_weights(everything, 1);
  const RouteTrace trace = draw_routes(problem.shape, 1, {});
  Runner plain(settings.layer, problem, weights.view(), trace);
  std::vector<Runner> blocks;
  for (const Block& block : kBlocks) {
    blocks.emplace_back(settings.layer, problem_of(block, problem), weights.view(), trace);
  }
  std::vector<double> work;  // FLOPs over the plain layer's, at least 1
  for (const Runner& block : blocks) work.push_back(std::max(1.0, block.flops() / plain.flops()));
  const HostBuffer flush(kFlushBytes);
  std::fill_n(flush.as<unsigned char>(), flush.size(), static_cast<unsigned char>(1));
  std::vector<double> plain_us;
  std::vector<std::vector<double>> block_us(blocks.size());
  std::vector<std::vector<double>> ratios(blocks.size());
  for (int round = -1; round < settings.rounds; ++round) {  // the first warms caches and clocks up
    double before = plain.sample(flush);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const double us = blocks[i].sample(flush);
      const double after = plain.sample(flush);
      if (round >= 0) {
        block_us[i].push_back(us);
        plain_us.push_back(after);
        ratios[i].push_back(us / work[i] / ((before + after) / 2));
      }
      before = after;
    }
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const MedianInterval interval = median_interval(ratios[i]);
    fmt::print(R"({{"block":"{}","options":"{}","shape":"{}","dtype":"{}","level":"{}","isa":"{}",)"
               R"("threads":{},"rounds":{},"work":{:.4f},"plain_us":{:.1f},"median_us":{:.1f},)"
               R"("iqr_us":{:.1f},"gflops":{:.2f},"over_plain":{:.4f},"low":{:.4f},"high":{:.4f},)"
               R"("bound":{},"verdict":"{}"}})"
               "\n",
               kBlocks[i].name, block_options(blocks[i].layer().problem()),
               to_string(problem.shape), name_of(problem.dtype), settings.layer.level,
               blocks[i].layer().isa(), blocks[i].layer().threads(), settings.rounds, work[i],
               median(plain_us), median(block_us[i]), interquartile_range(block_us[i]),
               blocks[i].flops() / median(block_us[i]) * 1e-3, median(ratios[i]), interval.low,
               interval.high, kBound,
               interval.high <= kBound ? "within"
               : interval.low > kBound ? "above"
                                       : "undecided");
    std::fflush(stdout);
  }
}

int run(Arguments arguments) {
  const std::vector<std::int64_t> tokens = arguments.numbers("--tokens", {512});
  const std::vector<std::int64_t> sizes = arguments.numbers("--shape", {1024, 256, 16, 4});
  MOE_CHECK(sizes.size() == 4, "--shape has {} sizes, but H,I,E,K are needed", sizes.size());
  Settings settings;
  settings.plain.dtype = parse_dtype(arguments.text("--dtype", "fp32"));
  settings.layer.level = arguments.text("--level", "compiled");
  settings.layer.isa = arguments.text("--isa", "auto");
  settings.layer.threads = static_cast<int>(arguments.number("--threads", 1));
  settings.rounds = static_cast<int>(arguments.number("--rounds", 101));
  // Without tuning all blocks take the same tiles: what differs is the block.
  const std::int64_t tune = arguments.number("--tune", 0, 0);
  settings.layer.tune_seconds = static_cast<double>(tune);
  settings.layer.tune_cache = "off";
  const std::vector<std::string> words = arguments.words();
  MOE_CHECK(words.empty(), "'{}' is not an option", words.front());
  const MachineInfo machine = describe_machine();
  fmt::print(R"({{"cpu":"{}","kernel":"{}","threads":{},"compiler":"{}"}})"
             "\n",
             machine.cpu, machine.kernel, machine.threads, machine.compiler);
  for (const std::int64_t count : tokens) {
    settings.plain.shape = {count, sizes[0], sizes[1], sizes[2], sizes[3]};
    measure(settings);
  }
  return 0;
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) try {
  return moe::run({argc, argv});
} catch (const std::exception& error) {
  fmt::print(stderr, "cpu_blocks: {}\n", error.what());
  return 1;
}
