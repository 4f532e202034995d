// One line per row, the fields of the JSON rows (RFC 4180 quoting).
#include "report/row_json.h"

namespace moe::report {
namespace {

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char letter : text) {
    out += letter;
    if (letter == '"') out += '"';
  }
  return out + '"';
}

std::string cell(const nlohmann::ordered_json& value) {
  if (value.is_null()) return {};
  return quoted(value.is_string() ? value.get<std::string>() : value.dump());
}

}  // namespace

std::string render_csv(const Report& report) {
  std::string head;
  const nlohmann::ordered_json fields = row_json(report, {});
  for (const auto& item : fields.items()) {
    head += (head.empty() ? "" : ",") + item.key();
  }
  std::string text = head + "\n";
  for (const ReportRow& row : report.rows) {
    std::string line;
    const nlohmann::ordered_json values = row_json(report, row);
    for (const auto& item : values.items()) {
      line += cell(item.value()) + ",";
    }
    line.back() = '\n';
    text += line;
  }
  return text;
}

}  // namespace moe::report
