// What --profile kernels found, below the table of levels.
#include <fmt/core.h>

#include "core/text.h"
#include "report/report.h"

namespace moe::report {
namespace {

/// Kernels with less of the time than this are one line together.
constexpr double kLeastShare = 0.005;

constexpr std::size_t kNameWidth = 64;
constexpr std::size_t kShortNameWidth = 32;  // within a sentence

std::string shortened(const std::string& name, std::size_t width) {
  return name.size() <= width ? name : name.substr(0, width - 3) + "...";
}

std::string kernel_line(double microseconds, double share, double launches,
                        const std::optional<double>& bytes, const std::string& name) {
  const std::string moved =
      bytes ? format_bytes(static_cast<std::uint64_t>(*bytes)) : std::string("-");
  return fmt::format("  {:>10}  {:>5.0f} %  {:>8.4g}  {:<9}  {}\n",
                     format_microseconds(microseconds), 100 * share, launches, moved,
                     shortened(name, kNameWidth));
}

std::string profile_text(const std::string& level, const KernelProfile& profile) {
  std::string text =
      fmt::format("kernels of {}: {:.4g} launches in {}, {:.0f} % of them busy", level,
                  profile.launches, format_microseconds(profile.span_us),
                  profile.span_us > 0 ? 100 * profile.busy_us / profile.span_us : 0.0);
  if (!profile.largest_gap_before.empty()) {
    text += fmt::format("; largest gap {} before {}", format_microseconds(profile.largest_gap_us),
                        shortened(profile.largest_gap_before, kShortNameWidth));
  }
  text += "\n";
  if (profile.lost > 0) text += fmt::format("  {} records were lost\n", profile.lost);
  text += fmt::format("  {:>10}  {:>7}  {:>8}  {:<9}  {}\n", "time", "share", "launches", "written",
                      "kernel");
  KernelTime rest;
  for (const KernelTime& kernel : profile.kernels) {
    if (kernel.share < kLeastShare) {
      rest.microseconds += kernel.microseconds;
      rest.share += kernel.share;
      rest.launches += kernel.launches;
      continue;
    }
    text +=
        kernel_line(kernel.microseconds, kernel.share, kernel.launches, kernel.bytes, kernel.name);
  }
  if (rest.launches > 0) {
    text += kernel_line(rest.microseconds, rest.share, rest.launches, {}, "others");
  }
  return text + "\n";
}

}  // namespace

std::string render_kernels(const std::vector<ReportRow>& rows) {
  std::string text;
  for (const ReportRow& row : rows) {
    const std::string level = fmt::format("{} {}", row.bench.level.number, row.bench.level.name);
    if (row.bench.kernels) {
      text += profile_text(level, *row.bench.kernels);
    } else if (!row.bench.kernels_reason.empty()) {
      text += fmt::format("kernels of {}: not recorded, {}\n\n", level, row.bench.kernels_reason);
    }
  }
  return text;
}

}  // namespace moe::report
