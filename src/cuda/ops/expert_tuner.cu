#include "cuda/ops/expert_tuner.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "core/memory.h"
#include "core/rng.h"
#include "cuda/check.h"

namespace moe::cuda {
namespace {

using Clock = std::chrono::steady_clock;

std::uint64_t rows_bytes(const Problem& problem) {
  return static_cast<std::uint64_t>(with_shared_slots(problem).routed_rows() *
                                    problem.shape.hidden) *
         size_of(problem.dtype);
}
std::uint64_t gate_up_rows_bytes(const Problem& problem) {
  return static_cast<std::uint64_t>(with_shared_slots(problem).routed_rows() *
                                    matrices_before_activation(problem) *
                                    problem.shape.intermediate) *
         size_of(problem.dtype);
}

/// expert_offsets[E'+1] of `tokens` tokens that choose uniformly; the same in every run.
std::vector<std::int32_t> uniform_offsets(const Problem& problem, std::int64_t tokens) {
  constexpr std::uint64_t kSeed = 0x7475'6e65;
  const Shape& shape = problem.shape;
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(with_shared_slots(problem).experts) +
                                    1);
  std::vector<std::int32_t> experts(static_cast<std::size_t>(shape.experts));
  std::iota(experts.begin(), experts.end(), 0);
  std::uint64_t draw = 0;
  for (std::int64_t token = 0; token < tokens; ++token) {
    // The first K of a shuffle that goes on from the last token's order.
    for (std::int64_t slot = 0; slot < shape.top_k; ++slot) {
      const auto left = static_cast<std::uint64_t>(shape.experts - slot);
      const auto other = static_cast<std::size_t>(slot) + random_bits(kSeed, 0, draw++) % left;
      std::swap(experts[static_cast<std::size_t>(slot)], experts[other]);
      ++offsets[static_cast<std::size_t>(experts[static_cast<std::size_t>(slot)]) + 1];
    }
  }
  for (std::size_t shared = experts.size() + 1; shared < offsets.size(); ++shared) {
    offsets[shared] = static_cast<std::int32_t>(tokens);
  }
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  return offsets;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

bool prefer(const ExpertChoice& choice, ExpertGemms& gemms) {
  const auto set = [&](Matmul& gemm, const std::optional<MatmulAlgorithm>& algorithm) {
    return !algorithm || gemm.prefer(choice.load.first_rows, choice.load.last_rows, *algorithm);
  };
  const bool gate_up = set(gemms.gate_up(), choice.gate_up);
  return set(gemms.down(), choice.down) && gate_up;
}

/// Candidates of one load, timed against each other.
class LoadTuner {
 public:
  LoadTuner(const TunedExperts& experts, std::int64_t tokens, Clock::time_point deadline)
      : experts_(experts),
        tokens_(tokens),
        deadline_(deadline),
        offsets_(uniform_offsets(experts.problem, tokens)),
        memory_(tuning_bytes(experts.problem)) {
    buffers_.rows = memory_.as<std::byte>();
    buffers_.gate_up = buffers_.rows + round_up(rows_bytes(experts.problem), kArenaAlignment);
    buffers_.permutation.expert_offsets = reinterpret_cast<std::int32_t*>(
        buffers_.gate_up + round_up(gate_up_rows_bytes(experts.problem), kArenaAlignment));
    MOE_CUDA_CHECK(cudaMemcpyAsync(buffers_.permutation.expert_offsets, offsets_.data(),
                                   offsets_.size() * sizeof(offsets_[0]), cudaMemcpyHostToDevice,
                                   experts.stream));
  }

  /// The fastest candidate. All of them meet in every round, so that a change of clocks meets all;
  /// those that are clearly behind after the first rounds leave.
  ExpertChoice fastest(std::vector<ExpertChoice> candidates) {
    constexpr int kRounds = 5;
    constexpr int kRoundsForAll = 2;
    constexpr double kClearlyBehind = 1.08;
    std::vector<std::vector<double>> times(candidates.size());
    applied_.reset();  // whoever made the candidates may have asked the library about them
    for (int round = 0; round < kRounds; ++round) {
      double best = 0;
      for (const auto& of : times) {
        if (round > 0) best = best == 0 ? median(of) : std::min(best, median(of));
      }
      for (std::size_t i = 0; i < candidates.size(); ++i) {
        if (round >= kRoundsForAll && median(times[i]) > kClearlyBehind * best) continue;
        if (expired() && !(round == 0 && i == 0)) {
          cut_ = true;
          break;
        }
        times[i].push_back(sample(candidates[i]));
      }
      if (cut_) break;
    }
    std::size_t fastest = 0;
    for (std::size_t i = 1; i < candidates.size(); ++i) {
      if (!times[i].empty() && median(times[i]) < median(times[fastest])) fastest = i;
    }
    return candidates[fastest];
  }

  /// `tuned`, or `standard` when that is as fast; both timed in turns.
  ExpertChoice confirmed(ExpertChoice tuned, ExpertChoice standard) {
    constexpr int kRounds = 7;
    constexpr double kGainThatCounts = 1.01;
    std::vector<double> tuned_times;
    std::vector<double> standard_times;
    for (int round = 0; round < kRounds; ++round) {
      tuned_times.push_back(sample(tuned));
      standard_times.push_back(sample(standard));
    }
    const bool gains = median(standard_times) > kGainThatCounts * median(tuned_times);
    ExpertChoice kept = gains ? std::move(tuned) : std::move(standard);
    kept.timed = true;
    kept.microseconds = median(gains ? tuned_times : standard_times);
    kept.default_microseconds = median(standard_times);
    kept.date = utc_now();
    return kept;
  }

  [[nodiscard]] bool expired() const {
    return Clock::now() >= deadline_ || (experts_.cancel != nullptr && *experts_.cancel);
  }
  /// Whether time ended before every candidate was timed.
  [[nodiscard]] bool cut() const { return cut_; }

 private:
  /// Microseconds of all experts under `choice`.
  double sample(const ExpertChoice& choice) {
    if (!applied_ || applied_->gate_up != choice.gate_up || applied_->down != choice.down) {
      experts_.gemms->gate_up().prefer_nothing();
      experts_.gemms->down().prefer_nothing();
      MOE_INTERNAL_CHECK(prefer(choice, *experts_.gemms), "the library took back a kernel");
      experts_.gemms->share_choices();
      applied_ = choice;
    }
    fill_rows();
    // Not waited for: in a forward, too, the host is ahead by the time that the rows take.
    start_.record(experts_.stream);
    experts_.gemms->fork(choice.schedule, experts_.stream);
    experts_.gemms->run(choice.schedule, offsets_.data(), buffers_, *experts_.kernels,
                        experts_.stream, nullptr);
    end_.record(experts_.stream);
    end_.wait();
    return end_.milliseconds_since(start_) * 1e3;
  }

  /// Anew for each sample, which overwrites them. Numbers of the weights' distribution: on zeros the
  /// clocks would be higher.
  void fill_rows() const {
    const TensorView& source = experts_.weights.down;
    const std::uint64_t bytes = rows_bytes(experts_.problem) /
                                static_cast<std::uint64_t>(experts_.problem.shape.tokens) *
                                static_cast<std::uint64_t>(tokens_);
    for (std::uint64_t at = 0; at < bytes; at += source.bytes()) {
      MOE_CUDA_CHECK(cudaMemcpyAsync(buffers_.rows + at, source.data,
                                     std::min<std::uint64_t>(source.bytes(), bytes - at),
                                     cudaMemcpyDeviceToDevice, experts_.stream));
    }
  }

  TunedExperts experts_;
  std::int64_t tokens_;
  Clock::time_point deadline_;
  std::vector<std::int32_t> offsets_;
  DeviceBuffer memory_;
  RoutedBuffers buffers_;  // rows, gate_up and expert_offsets only
  std::optional<ExpertChoice> applied_;
  Event start_;
  Event end_;
  bool cut_ = false;
};

std::vector<ExpertChoice> with_every_schedule(const ExpertChoice& choice, int most_streams,
                                              int most_launchers) {
  std::vector<ExpertChoice> candidates;
  for (const Pipeline pipeline : {Pipeline::kPhases, Pipeline::kChains}) {
    for (const int streams : {1, 2, 3, 4, 6, 8}) {
      for (const int launchers : {1, 2, 4}) {
        if (streams > most_streams || launchers > std::min(most_launchers, streams)) continue;
        candidates.push_back(choice);
        candidates.back().schedule = {
            streams, launchers, pipeline,
            streams == 1 ? ExpertOrder::kByIndex : ExpertOrder::kLargestFirst};
      }
    }
  }
  return candidates;
}

/// `choice` with each of the library's proposals for one of the two GEMMs: those for the mean number
/// of rows, and those for all rows in one GEMM, which are made to fill the device, as the experts'
/// GEMMs do together.
std::vector<ExpertChoice> with_every_algorithm(const ExpertChoice& choice, Matmul& gemm,
                                               std::optional<MatmulAlgorithm> ExpertChoice::*which,
                                               const Shape& shape) {
  constexpr int kForTheMean = 10;
  constexpr int kForAll = 4;
  const std::int64_t routed = choice.load.tokens * shape.top_k;
  std::vector<MatmulAlgorithm> proposals =
      gemm.candidates(std::max<std::int64_t>(1, routed / shape.experts), kForTheMean);
  for (const MatmulAlgorithm& algorithm : gemm.candidates(routed, kForAll)) {
    if (std::find(proposals.begin(), proposals.end(), algorithm) == proposals.end()) {
      proposals.push_back(algorithm);
    }
  }
  std::vector<ExpertChoice> candidates = {choice};
  for (const MatmulAlgorithm& algorithm : proposals) {
    ExpertChoice candidate = choice;
    candidate.*which = algorithm;
    if (candidate == choice) continue;
    gemm.prefer_nothing();
    if (gemm.prefer(choice.load.first_rows, choice.load.last_rows, algorithm)) {
      candidates.push_back(std::move(candidate));
    }
  }
  return candidates;
}

}  // namespace

std::string apply_choices(const std::vector<ExpertChoice>& choices, ExpertGemms& gemms) {
  gemms.gate_up().prefer_nothing();
  gemms.down().prefer_nothing();
  std::string refused;
  for (const ExpertChoice& choice : choices) {
    if (prefer(choice, gemms)) continue;
    refused += fmt::format("{}{} to {}", refused.empty() ? "" : ", ", choice.load.first_rows,
                           choice.load.last_rows);
  }
  gemms.share_choices();
  if (refused.empty()) return {};
  return "the library refuses the stored kernels for " + refused + " rows per expert";
}

std::uint64_t tuning_bytes(const Problem& problem) {
  return round_up(rows_bytes(problem), kArenaAlignment) +
         round_up(gate_up_rows_bytes(problem), kArenaAlignment) +
         static_cast<std::uint64_t>(with_shared_slots(problem).experts + 1) * sizeof(std::int32_t);
}

bool tune_experts(const TunedExperts& experts, double seconds, std::vector<ExpertChoice>& choices) {
  const Shape shape = with_shared_slots(experts.problem);
  const Clock::time_point start = Clock::now();
  const auto spent = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  bool complete = true;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    // The first load is the one that the layer was made for: it may use up to two thirds of the
    // time, each later one up to two thirds of what is left.
    const double share = i + 1 < choices.size() ? (seconds - spent()) * 2 / 3 : seconds - spent();
    if (share <= 0) return false;
    const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                             std::chrono::duration<double>(share));
    LoadTuner tuner(experts, choices[i].load.tokens, deadline);
    const ExpertChoice standard{.load = choices[i].load, .schedule = default_schedule(shape)};
    ExpertGemms& gemms = *experts.gemms;
    const int most = static_cast<int>(std::min<std::int64_t>(gemms.streams(), shape.experts));
    ExpertChoice best = tuner.fastest(with_every_schedule(standard, most, gemms.launchers()));
    best =
        tuner.fastest(with_every_algorithm(best, gemms.gate_up(), &ExpertChoice::gate_up, shape));
    best = tuner.fastest(with_every_algorithm(best, gemms.down(), &ExpertChoice::down, shape));
    best = tuner.fastest(with_every_schedule(best, most, gemms.launchers()));
    choices[i] = tuner.confirmed(std::move(best), standard);
    complete = complete && !tuner.cut();
  }
  return complete;
}

}  // namespace moe::cuda
