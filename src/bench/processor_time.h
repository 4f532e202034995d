// Who had the processors while a run was measured.
#pragma once

#include <istream>
#include <optional>
#include <vector>

namespace moe {

/// Processor time so far, in seconds, summed over processors.
struct ProcessorTime {
  double total = 0;
  double busy = 0;   ///< programs and the system, neither idle nor waiting for a disk
  double steal = 0;  ///< taken by the host of a virtual machine
  double own = 0;    ///< of `busy`, this process's
};

/// The lines "cpuN user nice system idle iowait irq softirq steal" of /proc/stat (proc(5)) of the processors
/// for which `counted` is true; own: 0. Nothing when there are none.
[[nodiscard]] std::optional<ProcessorTime> parse_processor_time(std::istream& stat,
                                                                const std::vector<bool>& counted,
                                                                double ticks_per_second);
/// Of the processors this process may run on. Nothing where the system does not say.
[[nodiscard]] std::optional<ProcessorTime> processor_time();

/// Shares of the processor time between two moments, 0 to 1.
struct ProcessorShares {
  double steal = 0;
  double others = 0;  ///< of other programs
};
[[nodiscard]] std::optional<ProcessorShares> shares_between(
    const std::optional<ProcessorTime>& before, const std::optional<ProcessorTime>& after);

}  // namespace moe
