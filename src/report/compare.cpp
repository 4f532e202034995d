#include "report/compare.h"

#include <algorithm>
#include <set>

#include "core/check.h"
#include "core/text.h"

namespace moe::report {
namespace {

bool measured(const ResultRow& row) {
  return row.status == name_of(RowStatus::kOk) && row.samples > 0;
}

/// Of the same measurement, had it succeeded: what was not measured has no threads and no launch.
bool same_attempt(const RowKey& a, const RowKey& b) {
  return a.level == b.level && a.problem == b.problem && a.cache == b.cache && a.skew == b.skew &&
         a.seed == b.seed && a.data == b.data;
}

std::string short_label(const ResultRow& row) {
  return fmt::format("{} at {}", row.key.level, to_string(row.key.problem.shape));
}

void refuse_unlike(const ResultFile& first, const ResultFile& second) {
  MOE_CHECK(first.device.same_kind(second.device),
            "{} was measured on {}, {} on {}: results of different devices are not compared",
            first.path, first.device.describe(), second.path, second.device.describe());
  const auto dtypes = [](const ResultFile& file) {
    std::set<std::string> names;
    for (const ResultRow& row : file.rows) names.emplace(name_of(row.key.problem.dtype));
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : " and ") + name;
    return text;
  };
  MOE_CHECK(dtypes(first) == dtypes(second),
            "{} has rows in {}, {} in {}: results of different dtypes are not compared", first.path,
            dtypes(first), second.path, dtypes(second));
}

void refuse_twice(const ResultFile& file) {
  for (std::size_t i = 0; i < file.rows.size(); ++i) {
    for (std::size_t j = i + 1; j < file.rows.size(); ++j) {
      MOE_CHECK(!measured(file.rows[i]) || !measured(file.rows[j]) ||
                    !(file.rows[i].key == file.rows[j].key),
                "{}: rows {} and {} are both {} under the same conditions", file.path, i + 1, j + 1,
                short_label(file.rows[i]));
    }
  }
}

/// What is known to be wrong has no time to compare, and what was not verified may be.
void refuse_unverified(const ResultFile& file, const ResultRow& row) {
  MOE_CHECK(row.status != name_of(RowStatus::kFailed),
            "{}: {} failed ({}); only verified rows are compared", file.path, short_label(row),
            row.reason);
  MOE_CHECK(!measured(row) || row.verified,
            "{}: {} was not verified; only verified rows are compared", file.path,
            short_label(row));
}

std::string status_words(const ResultRow& row) {
  std::string words = row.status;
  std::replace(words.begin(), words.end(), '_', ' ');
  return words;
}

/// The same skew and seed may still be other data: a trace that changed under its name, a generator that
/// did.
void refuse_other_data(const ResultFile& first, const ResultRow& row, const ResultFile& second,
                       const ResultRow& other) {
  MOE_CHECK(
      row.expert_load.empty() || other.expert_load.empty() || row.expert_load == other.expert_load,
      "{} and {}: {} was routed differently, although skew {} and seed {} agree; results of "
      "different data are not compared",
      first.path, second.path, short_label(row), row.key.skew, row.key.seed);
}

/// Why a measured row of one file has no partner in the other.
std::string reason_alone(const ResultRow& row, const ResultFile& other) {
  for (const ResultRow& candidate : other.rows) {
    if (measured(candidate) || !same_attempt(row.key, candidate.key)) continue;
    return fmt::format("{} in {}{}{}", status_words(candidate), other.path,
                       candidate.reason.empty() ? "" : ": ", candidate.reason);
  }
  return "not in " + other.path;
}

const ResultRow* partner_of(const ResultRow& row, const ResultFile& other) {
  for (const ResultRow& candidate : other.rows) {
    if (measured(candidate) && candidate.key == row.key) return &candidate;
  }
  return nullptr;
}

std::vector<UnpairedRow> unpaired(const ResultFile& file, const ResultFile& other) {
  std::vector<UnpairedRow> list;
  for (const ResultRow& row : file.rows) {
    if (!measured(row) || partner_of(row, other) != nullptr) continue;
    list.push_back({row, reason_alone(row, other)});
  }
  return list;
}

}  // namespace

double default_effect(const ResultDevice& device) {
  return device.backend == name_of(Backend::kCpu) ? 0.05 : 0.02;
}

double default_effect_us(const ResultDevice& device) {
  return device.backend == name_of(Backend::kCpu) ? 25 : 0;
}

CompareReport compare(const ResultFile& first, const ResultFile& second,
                      const CompareLimits& limits) {
  refuse_unlike(first, second);
  refuse_twice(first);
  refuse_twice(second);
  CompareReport report;
  report.first = first.describe();
  report.second = second.describe();
  report.device = first.device.describe();
  report.limits = limits;
  for (const ResultRow& row : first.rows) {
    for (const ResultRow& other : second.rows) {
      if (!same_attempt(row.key, other.key) || (!measured(row) && !measured(other))) continue;
      refuse_unverified(first, row);
      refuse_unverified(second, other);
    }
    const ResultRow* partner = measured(row) ? partner_of(row, second) : nullptr;
    if (partner == nullptr) continue;
    refuse_other_data(first, row, second, *partner);
    report.rows.push_back({row, *partner, judge(row.times, partner->times, limits), ""});
  }
  report.only_first = unpaired(first, second);
  report.only_second = unpaired(second, first);
  MOE_CHECK(!report.rows.empty(), "no measured row of {} is in {}: {}", first.path, second.path,
            report.only_first.empty() ? "it has none"
                                      : short_label(report.only_first.front().row) + " is " +
                                            report.only_first.front().reason);
  if (first.device.uuid != second.device.uuid) {
    report.notes.push_back(fmt::format("two different GPUs of one kind, {} and {}",
                                       first.device.uuid, second.device.uuid));
  }
  return report;
}

bool beyond_limit(const ComparedRow& row, const CompareLimits& limits) {
  return row.judgement.verdict == Verdict::kSlower && row.judgement.ratio > 1 + limits.limit;
}

bool any_beyond_limit(const CompareReport& report) {
  return std::any_of(report.rows.begin(), report.rows.end(),
                     [&](const ComparedRow& row) { return beyond_limit(row, report.limits); });
}

std::string label_of(const ResultRow& row, const std::vector<RowKey>& all) {
  const RowKey& key = row.key;
  const auto differ = [&](auto&& of) {
    return std::any_of(all.begin(), all.end(),
                       [&](const RowKey& other) { return !(of(other) == of(key)); });
  };
  const auto sizes = [](const RowKey& one) {
    Shape shape = one.problem.shape;
    shape.tokens = 1;
    return to_string(shape);
  };
  std::string text = fmt::format("{} {} ", row.level_number, key.level);
  text +=
      differ(sizes) ? to_string(key.problem.shape) : fmt::format("T={}", key.problem.shape.tokens);
  if (differ([](const RowKey& one) { return one.problem.dtype; })) {
    text += fmt::format(" {}", name_of(key.problem.dtype));
  }
  if (differ([](const RowKey& one) { return block_options(one.problem); })) {
    const std::string block = block_options(key.problem);
    text += " " + (block.empty() ? "plain" : block);
  }
  if (differ([](const RowKey& one) { return one.backend; })) text += " " + key.backend;
  if (differ([](const RowKey& one) { return one.launch; })) text += " " + key.launch;
  if (differ([](const RowKey& one) { return one.cache; })) text += " " + key.cache;
  if (differ([](const RowKey& one) { return one.skew; })) text += " " + key.skew;
  if (differ([](const RowKey& one) { return one.seed; })) text += fmt::format(" seed {}", key.seed);
  if (differ([](const RowKey& one) { return one.data; })) {
    text += " " + (key.data.empty() ? "seeded" : key.data);
  }
  return text;
}

}  // namespace moe::report
