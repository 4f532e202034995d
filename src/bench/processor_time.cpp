#include "bench/processor_time.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <numeric>
#include <sstream>
#include <string>
#include <string_view>

namespace moe {
namespace {

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

std::vector<bool> allowed_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return {};
  std::vector<bool> allowed(CPU_SETSIZE);
  for (std::size_t i = 0; i < allowed.size(); ++i) allowed[i] = CPU_ISSET(i, &set);
  return allowed;
}

}  // namespace

std::optional<ProcessorTime> parse_processor_time(std::istream& stat,
                                                  const std::vector<bool>& counted,
                                                  double ticks_per_second) {
  ProcessorTime sum;
  bool any = false;
  for (std::string line; std::getline(stat, line);) {
    constexpr std::string_view kName = "cpu";
    if (!line.starts_with(kName)) break;  // processors stand first
    const char* const from = line.data() + kName.size();
    const char* const end = line.data() + line.size();
    std::size_t number = 0;
    const auto [rest, error] = std::from_chars(from, end, number);
    if (error != std::errc()) continue;  // "cpu", the sum
    if (number >= counted.size() || !counted[number]) continue;
    std::istringstream fields(std::string(rest, end));
    std::array<double, 8> ticks{};
    for (double& tick : ticks) fields >> tick;
    if (!fields) return std::nullopt;
    const double idle = ticks[3] + ticks[4];
    const double total = std::accumulate(ticks.begin(), ticks.end(), 0.0);
    sum.total += total / ticks_per_second;
    sum.steal += ticks[7] / ticks_per_second;
    sum.busy += (total - idle - ticks[7]) / ticks_per_second;
    any = true;
  }
  return any ? std::optional(sum) : std::nullopt;
}

std::optional<ProcessorTime> processor_time() {
  std::ifstream file("/proc/stat");
  const long ticks = sysconf(_SC_CLK_TCK);
  rusage usage{};
  if (ticks <= 0 || getrusage(RUSAGE_SELF, &usage) != 0) return std::nullopt;
  std::optional<ProcessorTime> time =
      parse_processor_time(file, allowed_processors(), static_cast<double>(ticks));
  if (time) time->own = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  return time;
}

std::optional<ProcessorShares> shares_between(const std::optional<ProcessorTime>& before,
                                              const std::optional<ProcessorTime>& after) {
  if (!before || !after || !(after->total > before->total)) return std::nullopt;
  const double total = after->total - before->total;
  const double others = after->busy - before->busy - (after->own - before->own);
  return ProcessorShares{std::clamp((after->steal - before->steal) / total, 0.0, 1.0),
                         std::clamp(others / total, 0.0, 1.0)};
}

}  // namespace moe
