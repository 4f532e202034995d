#include "cpu/ops/tuner.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <vector>

#include "core/cache_file.h"
#include "core/check.h"
#include "core/memory.h"
#include "core/scalar.h"

namespace moe::cpu {
namespace {

using Clock = std::chrono::steady_clock;

/// One timed run should be long against a barrier and short against the budget.
constexpr double kRunSeconds = 8e-3;
/// Rough rates, only to choose how many experts make such a run.
constexpr double kFlopsPerThread = 100e9;
constexpr double kBytesPerThread = 15e9;
constexpr int kRounds = 4;       ///< runs of every candidate before half of them leave
constexpr int kFinalRounds = 6;  ///< more runs of the survivors
constexpr int kCheckRounds = 9;  ///< winner against heuristic, measured afresh
/// A gain below this is not distinguishable from noise on a machine shared with others.
constexpr double kLeastGain = 1.02;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Runs both products of a layer whose experts have the row counts of one range.
class Trial {
 public:
  Trial(const TuneProblem& problem, int range) : problem_(problem) {
    const Shape& shape = problem.shape;
    const std::int64_t first = TileChoices::first_row_of(range);
    const std::int64_t last = std::min(TileChoices::last_row_of(range), shape.tokens);
    // Row counts spread over the range. The last range has no end: twice its beginning.
    const std::int64_t span = std::min(last, 2 * first) - first + 1;
    const double row_seconds = 6.0 * static_cast<double>(shape.hidden * shape.intermediate) /
                               (kFlopsPerThread * problem.threads);
    const double expert_seconds =
        static_cast<double>((problem.gate_up->panels() * problem.gate_up->panel_bytes()) +
                            (problem.down->panels() * problem.down->panel_bytes())) /
        (kBytesPerThread * problem.threads);
    double seconds = 0;
    std::int64_t total = 0;
    while (static_cast<std::int64_t>(rows_.size()) < shape.experts && seconds < kRunSeconds) {
      const auto index = static_cast<std::int64_t>(rows_.size());
      const std::int64_t rows = first + index * 7 % span;  // 7: neighbours differ
      if (2 * (total + rows) > shape.routed_rows()) break;
      rows_.push_back(rows);
      total += rows;
      seconds += std::max(expert_seconds, row_seconds * static_cast<double>(rows));
    }
    if (rows_.empty()) return;
    offsets_.resize(static_cast<std::size_t>(shape.experts + 1));
    gate_up_tasks_.resize(offsets_.size());
    down_tasks_.resize(offsets_.size());

    const std::int64_t element = row_element_bytes(problem.kernels->row_layout);
    const std::int64_t x_bytes = total * problem.gate_up->depth() * element;
    act_depth_ = problem.down->depth();
    x_ = HostBuffer(static_cast<std::size_t>(x_bytes));
    c_ = HostBuffer(static_cast<std::size_t>(total * shape.hidden * 4));
    act_ = HostBuffer(static_cast<std::size_t>(total * act_depth_ * element));
    if (element == 4) {
      fill(x_.as<float>(), x_bytes / element);
    } else {
      fill(x_.as<BFloat16>(), x_bytes / element);
    }
  }

  /// Half of the routed rows are the most a trial takes, so that x and y_perm side by side fit what
  /// the level's workspace will need: there may be nothing left to time.
  [[nodiscard]] bool possible() const { return !rows_.empty(); }

  /// Seconds of one run with every range set to `choice`. `turn` says which experts take part, so
  /// that weights come from DRAM where the layer has enough of them.
  double run(const TileChoice& choice, int turn) {
    std::fill(std::begin(choices_.choices), std::end(choices_.choices), choice);
    const std::int64_t experts = problem_.shape.experts;
    const auto active = static_cast<std::int64_t>(rows_.size());
    const std::int64_t begin = turn * active % experts;
    std::int64_t offset = 0;
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      offsets_[static_cast<std::size_t>(expert)] = offset;
      const std::int64_t index = (expert - begin + experts) % experts;
      if (index < active) offset += rows_[static_cast<std::size_t>(index)];
    }
    offsets_.back() = offset;

    const auto start = Clock::now();
    const RowGroups groups{offsets_.data(), experts, &choices_};
    plan_tasks(groups, problem_.gate_up->panels(), problem_.threads, gate_up_tasks_.data());
    plan_tasks(groups, problem_.down->panels(), problem_.threads, down_tasks_.data());
    const GroupedGemm gate_up{.kernels = problem_.kernels,
                              .weights = problem_.gate_up,
                              .groups = groups,
                              .tasks = gate_up_tasks_.data(),
                              .a = x_.data(),
                              .epilogue = problem_.step.kind == ActivationStep::Kind::kSwiGlu
                                              ? Epilogue::kSwiGlu
                                              : Epilogue::kAct,
                              .act = act_.data(),
                              .act_depth = act_depth_,
                              .step = problem_.step};
    const GroupedGemm down{.kernels = problem_.kernels,
                           .weights = problem_.down,
                           .groups = groups,
                           .tasks = down_tasks_.data(),
                           .a = act_.data(),
                           .epilogue = Epilogue::kStore,
                           .c = c_.as<float>(),
                           .c_columns = problem_.shape.hidden};
    std::atomic<std::int64_t> gate_up_counter{0};
    std::atomic<std::int64_t> down_counter{0};
#pragma omp parallel num_threads(problem_.threads)
    {
      run_tasks(gate_up, gate_up_counter);
#pragma omp barrier
      run_tasks(down, down_counter);
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

 private:
  template <class Element>
  static void fill(Element* to, std::int64_t count) {
    // Same values every time; a fraction of the range of N(0,1), no denormals.
    for (std::int64_t i = 0; i < count; ++i) {
      to[i] = from_float<Element>(static_cast<float>(i * 37 % 255 - 127) / 128.0F);
    }
  }

  const TuneProblem& problem_;
  TileChoices choices_;
  std::vector<std::int64_t> rows_;
  std::vector<std::int64_t> offsets_;
  std::vector<ExpertTasks> gate_up_tasks_;
  std::vector<ExpertTasks> down_tasks_;
  HostBuffer x_;
  HostBuffer c_;
  HostBuffer act_;
  std::int64_t act_depth_ = 0;
};

struct Candidate {
  TileChoice choice;
  std::vector<double> ratios;  ///< time over the heuristic's in the same round

  [[nodiscard]] double score() const { return median(ratios); }
};

bool is_set(const std::atomic<bool>* flag) {
  return flag != nullptr && *flag;
}

/// Times candidates against each other, round by round. False when the deadline passed or it was cancelled.
class Contest {
 public:
  Contest(Trial& trial, Clock::time_point deadline, const std::atomic<bool>* cancel)
      : trial_(trial), deadline_(deadline), cancel_(cancel) {}

  bool run(std::vector<Candidate>& candidates, const TileChoice& heuristic, int rounds) {
    for (int round = 0; round < rounds; ++round) {
      ++turn_;
      const double base = trial_.run(heuristic, turn_);
      for (Candidate& candidate : candidates) {
        if (Clock::now() > deadline_ || is_set(cancel_)) return false;
        candidate.ratios.push_back(trial_.run(candidate.choice, turn_) / base);
      }
    }
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.score() < b.score(); });
    return true;
  }

 private:
  Trial& trial_;
  Clock::time_point deadline_;
  const std::atomic<bool>* cancel_;
  int turn_ = 0;
};

/// Variants of the winner's task sizes: they matter less than the tile, so they come after it.
std::vector<TileChoice> partition_variants(const TileChoice& base, std::int64_t first_row) {
  std::vector<TileChoice> variants;
  for (const std::int64_t tasks : {8, 72}) {
    variants.push_back(base);
    variants.back().tasks_per_thread = tasks;
  }
  if (first_row > std::int64_t{4} * base.shape.rows) {
    for (const std::int64_t rows : {0, 128, 512}) {
      if (rows == base.row_part) continue;
      variants.push_back(base);
      variants.back().row_part = rows;
    }
  }
  return variants;
}

/// nullopt when time ran out: an unfinished contest decides nothing.
std::optional<TunedRange> tune_range(const TuneProblem& problem, int range,
                                     const TileChoice& heuristic, Clock::time_point deadline) {
  Trial trial(problem, range);
  if (!trial.possible()) return std::nullopt;
  const std::int64_t first = TileChoices::first_row_of(range);
  const std::int64_t last = std::min(TileChoices::last_row_of(range), problem.shape.tokens);
  Contest contest(trial, deadline, problem.cancel);
  trial.run(heuristic, 0);  // pages of the scratch are touched, threads are awake

  std::vector<Candidate> candidates;
  for (const TileChoice& choice :
       tune_candidates(*problem.kernels, problem.dtype, first, last, heuristic)) {
    candidates.push_back({choice, {}});
  }
  if (!contest.run(candidates, heuristic, kRounds)) return std::nullopt;
  candidates.resize((candidates.size() + 1) / 2);
  if (!contest.run(candidates, heuristic, kFinalRounds)) return std::nullopt;

  std::vector<Candidate> partitions = {{candidates.front().choice, {}}};
  for (const TileChoice& choice : partition_variants(candidates.front().choice, first)) {
    partitions.push_back({choice, {}});
  }
  if (!contest.run(partitions, heuristic, kFinalRounds)) return std::nullopt;

  // The best of many noisy figures is partly luck: only a fresh comparison counts.
  std::vector<Candidate> winner = {{partitions.front().choice, {}}};
  TunedRange result{.tuned = true, .choice = heuristic, .gain = 1.0, .date = utc_now()};
  if (winner.front().choice == heuristic) return result;
  if (!contest.run(winner, heuristic, kCheckRounds)) return std::nullopt;
  const double gain = 1.0 / winner.front().score();
  if (gain >= kLeastGain) {
    result.choice = winner.front().choice;
    result.gain = gain;
  }
  return result;
}

}  // namespace

std::vector<TileChoice> tune_candidates(const GemmKernels& kernels, DType dtype, std::int64_t first,
                                        std::int64_t last, const TileChoice& heuristic) {
  std::vector<TileChoice> candidates = {heuristic};
  // Shapes that cut every row count of the range into the same blocks run the same tiles.
  const auto same_blocks = [&](const TileShape& a, const TileShape& b) {
    if (a.panels != b.panels) return false;
    const std::int64_t end = std::min(last, first + std::int64_t{4} * kMaxPackedRows);
    for (std::int64_t rows = first; rows <= end; ++rows) {
      if (block_count(rows, a) != block_count(rows, b)) return false;
    }
    return true;
  };
  const auto add = [&](const TileChoice& choice) {
    const bool known =
        std::any_of(candidates.begin(), candidates.end(), [&](const TileChoice& candidate) {
          return same_blocks(candidate.shape, choice.shape) && candidate.chunk == choice.chunk &&
                 candidate.prefetch == choice.prefetch;
        });
    if (!known) candidates.push_back(choice);
  };
  for (int index = 0; index < kernels.shape_count; ++index) {
    const TileShape& shape = kernels.shapes[index];
    // Three passes where another shape needs one are never a contender.
    if (last <= kernels.shapes[0].rows && block_count(first, shape) > 2) continue;
    for (const bool prefetch : {false, true}) {
      TileChoice choice = heuristic;
      choice.shape = shape;
      choice.prefetch = prefetch;
      choice.chunk = 0;
      add(choice);
      // Chunks serve the passes after the first.
      if (block_count(last, shape) < 2) continue;
      for (const std::int64_t bytes : {16 * 1024, 32 * 1024}) {
        choice.chunk = chunk_depth(kernels, dtype, bytes);
        add(choice);
      }
    }
  }
  return candidates;
}

std::vector<int> tune_order(const Shape& shape) {
  const std::int64_t mean =
      std::max<std::int64_t>(1, (shape.routed_rows() + shape.experts - 1) / shape.experts);
  const int likely = TileChoices::range_of(std::min(mean, shape.tokens));
  const int highest = TileChoices::range_of(shape.tokens);
  std::vector<int> order;
  for (int distance = 0; distance < TileChoices::kRanges; ++distance) {
    // Above before below at the same distance: more rows, more time.
    if (likely + distance <= highest) order.push_back(likely + distance);
    if (distance > 0 && likely - distance >= 0) order.push_back(likely - distance);
  }
  return order;
}

int tune(const TuneProblem& problem, double seconds, TunedRanges& ranges) {
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(seconds));
  const TileChoices heuristic = TileChoices::defaults(*problem.kernels, problem.dtype);
  int added = 0;
  for (const int range : tune_order(problem.shape)) {
    TunedRange& entry = ranges[static_cast<std::size_t>(range)];
    if (entry.tuned) continue;
    if (Clock::now() > deadline || is_set(problem.cancel)) break;
    if (problem.progress) {
      problem.progress(
          fmt::format("tuning {} to {} rows per expert", TileChoices::first_row_of(range),
                      std::min(TileChoices::last_row_of(range), problem.shape.tokens)));
    }
    if (const auto result = tune_range(problem, range, heuristic.choices[range], deadline)) {
      entry = *result;
      ++added;
    }
  }
  return added;
}

}  // namespace moe::cpu
