#include "cuda/ops/persistent_tuner.h"

#include <chrono>
#include <utility>

#include "core/contest.h"

namespace moe::cuda {
namespace {

using Clock = std::chrono::steady_clock;

TunedBucket tune_bucket(const PersistentContest& contest, std::int64_t tokens,
                        Clock::time_point deadline) {
  PersistentCandidates candidates = candidate_plans(contest.problem, tokens, contest.facts);
  contest.prepare(tokens);
  const ContestResult result = hold_contest(
      {.candidates = candidates.plans.size(),
       .sample = [&](std::size_t i) { return contest.sample(candidates.plans[i], tokens); },
       .out_of_time = [&] { return Clock::now() >= deadline; }});
  TunedBucket tuned{.pruned = std::move(candidates.pruned)};
  int timed = 0;
  for (std::size_t i = 0; i < candidates.plans.size(); ++i) {
    tuned.timings.push_back({to_string(candidates.plans[i]), result.medians[i], result.rounds[i]});
    timed += result.rounds[i] > 0 ? 1 : 0;
  }
  const double heuristic = result.standard > 0 ? result.standard : result.medians.front();
  tuned.choice = {.tokens = tokens,
                  .plan = candidates.plans[result.winner],
                  .routing = contest.routing,
                  .date = utc_now(),
                  .candidates = timed,
                  .complete = result.complete,
                  .heuristic_us = heuristic,
                  .chosen_us = result.winner > 0 ? result.confirmed : heuristic,
                  .noise = result.noise};
  return tuned;
}

}  // namespace

std::vector<TunedBucket> tune_persistent(const PersistentContest& contest,
                                         const std::vector<std::int64_t>& buckets, double seconds) {
  const auto duration = [](double s) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
  };
  const Clock::time_point end = Clock::now() + duration(seconds);
  std::vector<TunedBucket> tuned;
  for (std::size_t i = 0; i < buckets.size(); ++i) {
    const Clock::time_point now = Clock::now();
    if (now < end) {
      const Clock::time_point share = i + 1 < buckets.size() ? now + (end - now) / 2 : end;
      tuned.push_back(tune_bucket(contest, buckets[i], share));
    } else {
      tuned.push_back(
          {.choice = {.tokens = buckets[i],
                      .plan = heuristic_plan(contest.problem, buckets[i], contest.facts),
                      .routing = contest.routing}});
    }
    tuned.back().choice.budget_seconds = seconds;
  }
  return tuned;
}

}  // namespace moe::cuda
