#include "core/check.h"
#include "core/text.h"
#include "report/report.h"

namespace moe::report {

Format parse_format(std::string_view name) {
  if (name == "table") return Format::kTable;
  if (name == "json") return Format::kJson;
  if (name == "csv") return Format::kCsv;
  if (name == "md") return Format::kMarkdown;
  fail(ErrorCode::kInvalidArgument, "unknown format '{}'; did you mean '{}'?", name,
       nearest_match(name, {"table", "json", "csv", "md"}));
}

std::string render(const Report& report, Format format, bool color) {
  switch (format) {
    case Format::kTable:
      return render_table(report, color);
    case Format::kJson:
      return render_json(report);
    case Format::kCsv:
      return render_csv(report);
    case Format::kMarkdown:
      return render_markdown(report);
  }
  return {};
}

}  // namespace moe::report
