// The second side of a comparison, measured now, and suspects measured again.
#pragma once

#include <string>

#include "cli/output.h"
#include "report/compare.h"

namespace moe::cli {

class LiveComparison {
 public:
  /// `old_program`: the program to take turns with when a row is measured again; "" compares with
  /// `first` each time. `first` and `progress` outlive this.
  LiveComparison(const report::ResultFile& first, std::string old_program, Progress& progress);

  /// Every measured row of the first result, by this program on this machine, in the same
  /// conditions. Throws kInvalidArgument when this machine is of another kind.
  [[nodiscard]] report::ResultFile measure();
  /// Measures each SLOWER row three more times, taking turns with the old program; one repeat that
  /// is not SLOWER decides. The row then has the times of the repeat that speaks most against SLOWER.
  void confirm(report::CompareReport& report);

 private:
  /// `rows` share all of their keys but the level and threads.
  [[nodiscard]] report::ResultFile run(const std::string& program, const std::string& name,
                                       const std::vector<report::ResultRow>& rows) const;
  [[nodiscard]] RowTimes times_of(const std::string& program, const std::string& name,
                                  const report::ResultRow& row) const;

  const report::ResultFile& first_;
  std::string old_program_;
  Progress& progress_;
};

}  // namespace moe::cli
