#include "cli/live.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include "cli/child.h"
#include "cli/exit_codes.h"
#include "core/check.h"
#include "core/text.h"

namespace moe::cli {
namespace {

constexpr int kRepeats = 3;
constexpr const char* kThisProgram = "this program, measured now";

/// Rows that one command measures.
bool same_run(const report::RowKey& a, const report::RowKey& b) {
  return a.problem == b.problem && a.backend == b.backend && a.launch == b.launch &&
         a.cache == b.cache && a.skew == b.skew && a.seed == b.seed && a.data == b.data;
}

/// What this machine is, as a result file would say it.
report::ResultDevice device_here(const report::ResultDevice& like) {
  report::ResultDevice here;
  here.backend = like.backend;
  if (const std::optional<DeviceInfo> gpu = describe_device(parse_backend(like.backend))) {
    here.name = gpu->name;
    here.uuid = gpu->uuid;
    here.isa = like.isa;
  } else if (like.backend == name_of(Backend::kCpu)) {
    const MachineInfo machine = describe_machine();
    here.name = fmt::format("{}, {} cores", machine.cpu, machine.cores);
    // The run is limited to the instruction sets of the first one; this machine must have them.
    const bool has_isa =
        std::find(machine.isas.begin(), machine.isas.end(), like.isa) != machine.isas.end();
    here.isa = has_isa ? like.isa : machine.isa;
  } else {
    fail(ErrorCode::kUnsupported, "{}", why_unusable(parse_backend(like.backend)));
  }
  return here;
}

}  // namespace

LiveComparison::LiveComparison(const report::ResultFile& first, std::string old_program,
                               Progress& progress)
    : first_(first), old_program_(std::move(old_program)), progress_(progress) {
  const report::ResultDevice here = device_here(first.device);
  MOE_CHECK(first.device.same_kind(here),
            "{} was measured on {}, this machine is {}: results of different devices are not "
            "compared",
            first.path, first.device.describe(), here.describe());
}

report::ResultFile LiveComparison::run(const std::string& program, const std::string& name,
                                       const std::vector<report::ResultRow>& rows) const {
  const report::RowKey& key = rows.front().key;
  const Shape& shape = key.problem.shape;
  std::vector<std::string> arguments = {program, "bench", "run", "-q", "--format", "json"};
  for (const report::ResultRow& row : rows) {
    arguments.insert(arguments.end(), {"-t", "moe_journey:" + row.key.level});
  }
  if (key.data.empty()) {
    arguments.insert(arguments.end(),
                     {"--thiek", fmt::format("{},{},{},{},{}", shape.tokens, shape.hidden,
                                             shape.intermediate, shape.experts, shape.top_k)});
    std::istringstream block(block_options(key.problem));
    for (std::string word; block >> word;) arguments.push_back(word);
  } else {
    arguments.insert(arguments.end(),
                     {"--data", key.data, "--axis", fmt::format("tokens={}", shape.tokens)});
  }
  arguments.insert(arguments.end(),
                   {"--dtype", std::string(name_of(key.problem.dtype)), "--backend", key.backend,
                    "--skew", key.skew, "--seed", std::to_string(key.seed)});
  if (key.backend == name_of(Backend::kCpu)) {
    arguments.insert(arguments.end(), {"--threads", std::to_string(first_.device.threads), "--isa",
                                       first_.device.isa});
  } else {
    arguments.insert(arguments.end(), {"--cache", key.cache, "--launch", key.launch});
  }
  const ChildOutput output = run_child(arguments);
  if (output.code == kInterruptedBySignal) {
    fail(ErrorCode::kUnsupported, "interrupted while measuring {}", rows.front().key.level);
  }
  if (output.out.empty()) {
    fail(ErrorCode::kUnsupported, "{} could not measure {} at {}: exit code {}", program, key.level,
         to_string(shape), output.code);
  }
  return report::parse_result(output.out, name);
}

report::ResultFile LiveComparison::measure() {
  std::vector<std::vector<report::ResultRow>> runs;
  for (const report::ResultRow& row : first_.rows) {
    if (row.status != name_of(RowStatus::kOk)) continue;
    if (row.key.level != kAutoLevel)
      (void)find_level(row.key.level);  // an unknown one is said before anything is measured
    const auto same = std::find_if(runs.begin(), runs.end(), [&](const auto& rows) {
      return same_run(rows.front().key, row.key);
    });
    if (same == runs.end()) {
      runs.push_back({row});
    } else {
      same->push_back(row);
    }
  }
  MOE_CHECK(!runs.empty(), "{} has no measured row", first_.path);
  report::ResultFile all;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    progress_.say(fmt::format("run {}/{}: {} levels at {}", i + 1, runs.size(), runs[i].size(),
                              to_string(runs[i].front().key.problem.shape)));
    report::ResultFile result = run(own_path(), kThisProgram, runs[i]);
    if (i == 0) {
      all = std::move(result);
    } else {
      all.rows.insert(all.rows.end(), result.rows.begin(), result.rows.end());
    }
  }
  return all;
}

RowTimes LiveComparison::times_of(const std::string& program, const std::string& name,
                                  const report::ResultRow& row) const {
  const report::ResultFile result = run(program, name, {row});
  MOE_CHECK(result.rows.size() == 1, "{}: {} rows for {}", name, result.rows.size(), row.key.level);
  const report::ResultRow& again = result.rows.front();
  MOE_CHECK(again.verified && again.samples > 0, "{}: {} at {} is {}{}{}", name, row.key.level,
            to_string(row.key.problem.shape), again.status, again.reason.empty() ? "" : ": ",
            again.reason);
  return again.times;
}

void LiveComparison::confirm(report::CompareReport& report) {
  for (report::ComparedRow& row : report.rows) {
    if (row.judgement.verdict != Verdict::kSlower) continue;
    Judgement mildest;
    int repeat = 0;
    while (repeat < kRepeats) {
      progress_.say(fmt::format("{} at {} is SLOWER: measuring again, {}/{}", row.first.key.level,
                                to_string(row.first.key.problem.shape), repeat + 1, kRepeats));
      RowTimes before = row.first.times;
      RowTimes after;
      const bool new_first = repeat % 2 == 1;  // A B, B A, A B
      if (new_first) after = times_of(own_path(), kThisProgram, row.first);
      if (!old_program_.empty()) before = times_of(old_program_, old_program_, row.first);
      if (!new_first) after = times_of(own_path(), kThisProgram, row.first);
      const Judgement judgement = judge(before, after, report.limits);
      if (repeat == 0 || judgement.verdict != Verdict::kSlower || judgement.ratio < mildest.ratio) {
        mildest = judgement;
        row.first.times = before;
        row.second.times = after;
      }
      ++repeat;
      if (judgement.verdict != Verdict::kSlower) break;
    }
    row.judgement = mildest;
    const std::string turns = old_program_.empty() ? "" : " in turns with " + old_program_;
    row.note =
        mildest.verdict == Verdict::kSlower
            ? fmt::format("measured {} more times{}, slower each time", repeat, turns)
            : fmt::format("was slower at first; measured again{}, not in repeat {}", turns, repeat);
  }
}

}  // namespace moe::cli
