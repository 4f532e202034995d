#include "verify/fuzz.h"

#include <algorithm>
#include <array>
#include <memory>

#include "core/backend.h"
#include "core/check.h"
#include "core/isa.h"
#include "core/rng.h"
#include "core/threads.h"
#include "core/weight_tensors.h"
#include "verify/layer_check.h"

namespace moe {
namespace {

// Around the widths of vector registers, tiles and blocks of 8 to 128, and odd ones.
constexpr auto kTokens = std::to_array<std::int64_t>(
    {1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 200});
constexpr auto kWidths = std::to_array<std::int64_t>(
    {1,  2,  3,  5,  7,  8,  9,  15, 16,  17,  24,  31,  32,  33,  40,  45,
     47, 48, 63, 64, 65, 72, 96, 97, 100, 127, 128, 129, 160, 192, 255, 320});
constexpr auto kExperts = std::to_array<std::int64_t>({1, 2, 3, 5, 8, 13, 16, 40, 64, 72, 128});
constexpr std::int64_t kLargestTopK = 22;

/// Keep a case at a few milliseconds a level: values of one weight matrix over all experts, and
/// multiply-adds of one projection.
constexpr std::int64_t kMostWeights = 1 << 19;
constexpr std::int64_t kMostWork = 1 << 22;

/// Levels that would need more are skipped: the machine may be running other things.
constexpr std::uint64_t kMemoryLimit = std::uint64_t{1} << 30;

class Dice {
 public:
  explicit Dice(std::uint64_t seed) : seed_(seed) {}
  /// Uniform in [0, count).
  std::int64_t below(std::int64_t count) {
    return static_cast<std::int64_t>(random_bits(seed_, kStream, index_++) %
                                     static_cast<std::uint64_t>(count));
  }
  bool one_in(std::int64_t count) { return below(count) == 0; }
  template <class Values>
  auto pick(const Values& values) {
    return values[static_cast<std::size_t>(below(static_cast<std::int64_t>(values.size())))];
  }

 private:
  static constexpr std::uint64_t kStream = 0xF022;
  std::uint64_t seed_;
  std::uint64_t index_ = 0;
};

std::int64_t pick_top_k(Dice& dice, std::int64_t experts) {
  switch (dice.below(4)) {
    case 0:
      return 1;
    case 1:
      return std::min<std::int64_t>(2, experts);
    case 2:
      return std::min(experts, kLargestTopK);
    default:
      return 1 + dice.below(std::min(experts, kLargestTopK));
  }
}

Skew pick_skew(Dice& dice) {
  switch (dice.below(4)) {
    case 0:
      return Skew::parse("one-expert");
    case 1: {
      constexpr std::array<const char*, 3> kUneven = {"zipf:1", "zipf:2.5", "dirichlet:0.3"};
      return Skew::parse(dice.pick(kUneven));
    }
    default:
      return {};
  }
}

/// A router that the shape allows.
Router pick_router(Dice& dice, const Shape& shape) {
  constexpr std::array<Scoring, 5> kScorings = {Scoring::kSoftmax, Scoring::kSigmoid,
                                                Scoring::kSqrtSoftplus, Scoring::kSparseMixer,
                                                Scoring::kGiven};
  Router router{.scoring = dice.pick(kScorings)};
  router.renormalise = false;
  if (router.scoring == Scoring::kGiven) return router;
  constexpr std::array<float, 3> kScales = {1, 2.5F, 0.75F};
  router.scale = dice.pick(kScales);
  router.bias = dice.one_in(3);
  router.weight_on_input = dice.one_in(4);
  if (router.scoring == Scoring::kSparseMixer) return router;
  router.renormalise = dice.one_in(2);
  router.selection_bias = router.scoring != Scoring::kSoftmax && dice.one_in(2);
  for (const std::int64_t groups : {8, 5, 4, 3, 2}) {
    if (shape.experts % groups != 0 || !dice.one_in(2)) continue;
    const std::int64_t size = shape.experts / groups;
    const std::int64_t least = (shape.top_k + size - 1) / size;
    router.groups = groups;
    router.top_groups = least + dice.below(groups - least + 1);
    break;
  }
  return router;
}

/// What real models have beyond softmax routing and SwiGLU: half of the cases have none of it.
void pick_block(Dice& dice, Problem& problem) {
  if (dice.one_in(2)) return;
  if (!dice.one_in(3)) problem.router = pick_router(dice, problem.shape);
  constexpr std::array<const char*, 5> kActivations = {"swiglu", "swiglu,alpha=1.702,limit=7,up=1",
                                                       "swiglu,limit=0.5", "geglu", "relu2"};
  problem.activation = parse_activation(dice.pick(kActivations));
  problem.expert_bias = dice.one_in(3);
  if (dice.one_in(2)) {
    // One routed expert wide, several, and with a narrower last part.
    const std::int64_t width = problem.shape.intermediate;
    const std::array<std::int64_t, 4> widths = {width, 2 * width, width + (width + 1) / 2,
                                                (width + 2) / 3};
    problem.shared_intermediate = dice.pick(widths);
    problem.shared_switch = !problem.router.weight_on_input && dice.one_in(2);
  }
}

std::string level_flags(const FuzzCase& fuzz_case, Backend backend) {
  const Shape& shape = fuzz_case.problem.shape;
  const std::string block = block_options(fuzz_case.problem);
  return fmt::format(
      "--backend {} --thiek {},{},{},{},{}{} --dtype {} --seed {} --skew {} --threads {} --isa {}",
      name_of(backend), shape.tokens, shape.hidden, shape.intermediate, shape.experts, shape.top_k,
      (block.empty() ? "" : " ") + block, name_of(fuzz_case.problem.dtype), fuzz_case.seed,
      fuzz_case.skew.describe(), fuzz_case.threads, fuzz_case.isa);
}

/// Weights between canaries, and the same where the device computes.
class GuardedWeights {
 public:
  GuardedWeights(Device& device, const Problem& problem, const OwnedWeights& originals,
                 std::int64_t offset_elements) {
    const Weights given = originals.view();
    for (const WeightTensor& tensor : weight_tensors(problem)) {
      host_.push_back(std::make_unique<GuardedTensor>(given.*tensor.view, offset_elements));
      placed_.emplace_back(device, *host_.back());
      view_.*tensor.view = placed_.back().view();
    }
  }
  [[nodiscard]] const Weights& view() const { return view_; }
  [[nodiscard]] std::int64_t damaged_bytes() {
    std::int64_t damaged = 0;
    for (GuardedMirror& placed : placed_) placed.download();
    for (const auto& tensor : host_) damaged += tensor->damaged_bytes();
    return damaged;
  }

 private:
  std::vector<std::unique_ptr<GuardedTensor>> host_;
  std::vector<GuardedMirror> placed_;
  Weights view_;
};

/// A library below a level may be bound to one instruction set for the life of the process; a level
/// that refuses the case's is asked for its own choice.
Layer create(LayerOptions options, const Weights& weights) {
  try {
    return Layer::create(options, weights);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;
  }
  options.isa = "auto";
  return Layer::create(options, weights);
}

/// What is wrong with the layer; "" when nothing is.
std::string verify_level(const std::string& level, const FuzzCase& fuzz_case,
                         const OwnedWeights& originals, Device& device, Backend backend,
                         LayerCheck& check, FuzzResult& result) {
  GuardedWeights weights(device, fuzz_case.problem, originals, fuzz_case.offset_elements);
  const LayerOptions options{.level = level,
                             .backend = backend,
                             .problem = fuzz_case.problem,
                             .threads = fuzz_case.threads,
                             .isa = fuzz_case.isa,
                             .tune_seconds = 0,
                             .tune_cache = "off",
                             .workspace_limit = kMemoryLimit};
  try {
    Layer layer = create(options, weights.view());
    const VerifyResult verified = check.run(layer);
    ++result.layers;
    result.worst_tolerance_used =
        std::max(result.worst_tolerance_used, verified.worst.tolerance_used);
    if (!verified.passed) return verified.failure;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kUnsupported || error.code() == ErrorCode::kOutOfMemory) {
      ++result.skipped[level + ": " + error.what()];
      return {};
    }
    return std::string("threw: ") + error.what();
  } catch (const std::exception& error) {
    return std::string("threw: ") + error.what();
  }
  const std::int64_t damaged = weights.damaged_bytes();
  return damaged == 0 ? ""
                      : fmt::format("{} bytes before or after the weights were written", damaged);
}

}  // namespace

FuzzCase make_fuzz_case(std::uint64_t seed) {
  Dice dice(seed);
  FuzzCase result;
  result.seed = seed;
  Shape& shape = result.problem.shape;
  do {
    shape.tokens = dice.pick(kTokens);
    shape.hidden = dice.pick(kWidths);
    shape.intermediate = dice.pick(kWidths);
    shape.experts = dice.pick(kExperts);
    shape.top_k = pick_top_k(dice, shape.experts);
  } while (shape.experts * shape.hidden * shape.intermediate > kMostWeights ||
           shape.routed_rows() * shape.hidden * shape.intermediate > kMostWork);
  result.problem.dtype = dice.one_in(2) ? DType::kF32 : DType::kBF16;
  result.skew = pick_skew(dice);
  // One thread more than processors: parts of uneven size, threads that wait for one another.
  result.threads = static_cast<int>(1 + dice.below(usable_threads() + 1));
  result.isa = name_of(dice.pick(available_isas()));
  result.offset_elements = dice.one_in(4) ? 1 + dice.below(7) : 0;
  pick_block(dice, result.problem);
  return result;
}

FuzzResult fuzz(const FuzzOptions& options) {
  std::vector<std::string> levels;
  for (const std::string& level : options.levels) levels.push_back(find_level(level).name);
  if (levels.empty()) {
    for (const LevelInfo& info : list_levels()) levels.push_back(info.name);
  }
  FuzzResult result;
  LayerOptions device_options;
  device_options.backend = options.backend;
  const std::unique_ptr<Device> device = make_device(device_options);
  if (const std::string reason = device->unavailable(); !reason.empty()) {
    throw Error(ErrorCode::kUnsupported, reason);
  }
  for (std::int64_t index = 0; index < options.cases; ++index) {
    const std::uint64_t seed =
        index == 0 ? options.seed : random_bits(options.seed, 0, static_cast<std::uint64_t>(index));
    const FuzzCase fuzz_case = make_fuzz_case(seed);
    const OwnedWeights weights = make_weights(fuzz_case.problem, seed, fuzz_case.skew);
    LayerCheck check(fuzz_case.problem, weights.view(), seed, fuzz_case.skew,
                     fuzz_case.offset_elements);
    for (const std::string& level : levels) {
      const std::string failure =
          verify_level(level, fuzz_case, weights, *device, options.backend, check, result);
      if (failure.empty()) continue;
      result.failures.push_back(
          {level, failure,
           fmt::format("moe verify -t moe_journey:{} {}", level,
                       level_flags(fuzz_case, options.backend)),
           fmt::format("moe verify -t moe_journey:{} --backend {} --fuzz 1 --fuzz-seed {}", level,
                       name_of(options.backend), seed)});
    }
    ++result.cases;
    if (options.on_case &&
        !options.on_case(result.cases, static_cast<std::int64_t>(result.failures.size()))) {
      break;
    }
  }
  return result;
}

}  // namespace moe
