#include "cuda/activity_records.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <span>
#include <utility>

namespace moe::cuda {
namespace {

constexpr std::string_view kAnonymous = "(anonymous namespace)";

void replace_all(std::string& text, std::string_view what, std::string_view with) {
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size()) {
    text.replace(at, what.size(), with);
  }
}

/// Where the function's own name begins and its parameter list starts, outside of every bracket.
struct NameRange {
  std::size_t begin = 0;
  std::size_t end = 0;
};
NameRange name_range(const std::string& text) {
  NameRange range{0, text.size()};
  int depth = 0;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const char letter = text[at];
    if (depth == 0 && letter == '(') {
      range.end = at;
      break;
    }
    if (depth == 0 && letter == ' ') range.begin = at + 1;  // behind the return type
    if (letter == '<' || letter == '(' || letter == '{') ++depth;
    if (letter == '>' || letter == ')' || letter == '}') --depth;
  }
  return range;
}

}  // namespace

std::string short_kernel_name(const char* mangled) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> demangled(
      abi::__cxa_demangle(mangled, nullptr, nullptr, &status), &std::free);
  std::string name = status == 0 ? demangled.get() : mangled;
  if (status == 0) {
    replace_all(name, std::string(kAnonymous) + "::", "");
    const NameRange range = name_range(name);
    name = name.substr(range.begin, range.end - range.begin);
    replace_all(name, "moe::cuda::", "");
    replace_all(name, "moe::", "");
    replace_all(name, "__nv_bfloat16", "bf16");
  }
  constexpr std::size_t kMost = 96;
  constexpr std::size_t kTail = 32;  // CUTLASS tells its kernels apart at the end of their names
  if (name.size() > kMost) {
    name = name.substr(0, kMost - kTail - 3) + "..." + name.substr(name.size() - kTail);
  }
  return name;
}

namespace {

struct Totals {
  ActivityKind kind = ActivityKind::kKernel;
  std::int64_t launches = 0;
  std::int64_t nanoseconds = 0;
  std::uint64_t bytes = 0;
};

/// Adds the span, busy time and largest gap of one repetition, sorted by start, in nanoseconds.
void add_timeline(std::span<const KernelRecord* const> records, ActivitySummary& summary) {
  std::int64_t busy = 0;
  std::int64_t reached = records.front()->start_ns;  // everything before is accounted for
  for (const KernelRecord* record : records) {
    if (const std::int64_t gap = record->start_ns - reached;
        static_cast<double>(gap) > summary.largest_gap_us * 1e3) {
      summary.largest_gap_us = static_cast<double>(gap) / 1e3;
      summary.largest_gap_before = record->name;
    }
    busy += std::max<std::int64_t>(0, record->end_ns - std::max(reached, record->start_ns));
    reached = std::max(reached, record->end_ns);
  }
  summary.busy_us += static_cast<double>(busy) / 1e3;
  summary.span_us += static_cast<double>(reached - records.front()->start_ns) / 1e3;
}

}  // namespace

ActivitySummary summarise(const std::vector<KernelRecord>& records) {
  ActivitySummary summary;
  std::map<std::string_view, Totals> by_name;
  std::map<std::uint64_t, std::vector<const KernelRecord*>> repetitions;
  std::int64_t all_nanoseconds = 0;
  for (const KernelRecord& record : records) {
    Totals& totals = by_name[record.name];
    totals.kind = record.kind;
    ++totals.launches;
    totals.nanoseconds += record.end_ns - record.start_ns;
    totals.bytes += record.bytes;
    all_nanoseconds += record.end_ns - record.start_ns;
    repetitions[record.external_id].push_back(&record);
  }
  if (records.empty()) return summary;

  for (auto& [id, list] : repetitions) {
    std::sort(list.begin(), list.end(), [](const KernelRecord* one, const KernelRecord* other) {
      return one->start_ns < other->start_ns;
    });
    add_timeline(list, summary);
  }
  summary.repetitions = static_cast<int>(repetitions.size());
  const auto count = static_cast<double>(repetitions.size());
  summary.launches = static_cast<double>(records.size()) / count;
  summary.span_us /= count;
  summary.busy_us /= count;
  summary.gap_us = summary.span_us - summary.busy_us;
  summary.overlap_us = static_cast<double>(all_nanoseconds) / 1e3 / count - summary.busy_us;

  for (const auto& [name, totals] : by_name) {
    const auto nanoseconds = static_cast<double>(totals.nanoseconds);
    summary.kernels.push_back(
        {.name = std::string(name),
         .kind = totals.kind,
         .launches = static_cast<double>(totals.launches) / count,
         .microseconds = nanoseconds / 1e3 / count,
         .share = all_nanoseconds > 0 ? nanoseconds / static_cast<double>(all_nanoseconds) : 0,
         .bytes = static_cast<double>(totals.bytes) / count});
  }
  std::stable_sort(summary.kernels.begin(), summary.kernels.end(),
                   [](const KernelSummary& one, const KernelSummary& other) {
                     return one.microseconds > other.microseconds;
                   });
  return summary;
}

}  // namespace moe::cuda
