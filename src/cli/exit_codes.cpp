#include "cli/exit_codes.h"

#include <algorithm>

namespace moe::cli {

ExitCode exit_code_of(const Error& error) {
  switch (error.code()) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kIo:
      return kUsage;
    case ErrorCode::kUnsupported:
      return kNothingRunnable;
    case ErrorCode::kOutOfMemory:
      return kOutOfMemory;
    case ErrorCode::kCancelled:
      return kInterruptedBySignal;
    case ErrorCode::kCuda:
    case ErrorCode::kInternal:
      break;
  }
  return kCrashed;
}

ExitCode exit_code_of(const std::vector<report::ReportRow>& rows) {
  const auto any = [&](auto&& condition) {
    return std::any_of(rows.begin(), rows.end(),
                       [&](const report::ReportRow& row) { return condition(row.bench); });
  };
  const auto any_status = [&](RowStatus status) {
    return any([&](const BenchRow& row) { return row.status == status; });
  };
  if (any([](const BenchRow& row) { return row.wrong_output; })) return kNotVerified;
  if (any_status(RowStatus::kFailed)) return kCrashed;
  if (any_status(RowStatus::kOk)) return kOk;
  if (any_status(RowStatus::kTimeout)) return kTimedOut;
  if (any_status(RowStatus::kOutOfMemory)) return kOutOfMemory;
  return kNothingRunnable;
}

}  // namespace moe::cli
