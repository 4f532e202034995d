// The printed forms of a comparison.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/text.h"
#include "report/cells.h"
#include "report/compare.h"
#include "report/key_json.h"

namespace moe::report {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kWidth = 110;
constexpr std::size_t kNameWidth = 8;

std::string percent(double ratio) {
  return fmt::format("{:+.1f} %", 100 * (ratio - 1));
}

std::string range(const Judgement& judgement) {
  return fmt::format("{:+.1f} to {:+.1f} %", 100 * (judgement.low - 1), 100 * (judgement.high - 1));
}

std::vector<RowKey> keys_of(const CompareReport& report) {
  std::vector<RowKey> keys;
  for (const ComparedRow& row : report.rows) keys.push_back(row.first.key);
  for (const UnpairedRow& row : report.only_first) keys.push_back(row.row.key);
  for (const UnpairedRow& row : report.only_second) keys.push_back(row.row.key);
  return keys;
}

std::string words_of(const ComparedRow& row) {
  std::string words = row.judgement.reason;
  if (!row.note.empty()) words += (words.empty() ? "" : "; ") + row.note;
  return words;
}

std::string counts_text(const CompareReport& report) {
  std::map<Verdict, int> counts;
  int beyond = 0;
  for (const ComparedRow& row : report.rows) {
    ++counts[row.judgement.verdict];
    beyond += beyond_limit(row, report.limits) ? 1 : 0;
  }
  std::string text;
  for (const Verdict verdict :
       {Verdict::kSame, Verdict::kFaster, Verdict::kSlower, Verdict::kNoisy}) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", counts[verdict], name_of(verdict));
  }
  return text + fmt::format("; {} slower by more than {:g} %", beyond, 100 * report.limits.limit);
}

std::vector<Footer> footers_of(const CompareReport& report) {
  std::vector<Footer> list = {{"A", report.first}, {"B", report.second}, {"device", report.device}};
  std::string effect = fmt::format("{:g} %", 100 * report.limits.effect);
  if (report.limits.effect_us > 0) effect += fmt::format(" and {:g} us", report.limits.effect_us);
  list.push_back(
      {"rules", fmt::format("95 % intervals of the medians; a change is at least {}, more "
                            "than the A/A noise and than what the machine changed by",
                            effect)});
  const std::vector<RowKey> keys = keys_of(report);
  for (const UnpairedRow& row : report.only_first) {
    list.push_back({"only A", label_of(row.row, keys) + ": " + row.reason});
  }
  for (const UnpairedRow& row : report.only_second) {
    list.push_back({"only B", label_of(row.row, keys) + ": " + row.reason});
  }
  for (const std::string& note : report.notes) list.push_back({"note", note});
  list.push_back({"result", counts_text(report)});
  return list;
}

std::string painted(const std::string& text, Verdict verdict, bool color) {
  if (!color || verdict == Verdict::kSame) return text;
  const char* code = verdict == Verdict::kSlower ? "31" : verdict == Verdict::kFaster ? "32" : "2";
  return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

std::string table_of(const CompareReport& report, bool color) {
  const std::vector<RowKey> keys = keys_of(report);
  std::size_t width = 5;
  for (const ComparedRow& row : report.rows) {
    width = std::max(width, label_of(row.first, keys).size());
  }
  std::string text = fmt::format("{:<{}}  {:>10}  {:>10}  {:>9}  {:>20}  verdict\n", "level", width,
                                 "A", "B", "change", "interval");
  for (const ComparedRow& row : report.rows) {
    const Judgement& judgement = row.judgement;
    text += fmt::format("{:<{}}  {:>10}  {:>10}  {:>9}  {:>20}  {}\n", label_of(row.first, keys),
                        width, format_microseconds(row.first.times.median_us),
                        format_microseconds(row.second.times.median_us), percent(judgement.ratio),
                        range(judgement),
                        painted(std::string(name_of(judgement.verdict)), judgement.verdict, color));
    const std::string words = words_of(row);
    if (words.empty()) continue;
    for (const std::string& line : wrap(words, kWidth - 4)) text += "    " + line + "\n";
  }
  text += "\n";
  for (const Footer& footer : footers_of(report)) {
    const std::vector<std::string> lines = wrap(footer.text, kWidth - kNameWidth);
    for (std::size_t i = 0; i < lines.size(); ++i) {
      text += fmt::format("{:<{}}{}\n", i == 0 ? footer.name : "", kNameWidth, lines[i]);
    }
  }
  return text;
}

std::string markdown_of(const CompareReport& report) {
  const std::vector<RowKey> keys = keys_of(report);
  std::string text =
      "| level | A | B | change | interval | verdict |\n|---|---:|---:|---:|---:|---|\n";
  for (const ComparedRow& row : report.rows) {
    const std::string words = words_of(row);
    text += fmt::format("| {} | {} | {} | {} | {} | {}{}{} |\n", label_of(row.first, keys),
                        format_microseconds(row.first.times.median_us),
                        format_microseconds(row.second.times.median_us),
                        percent(row.judgement.ratio), range(row.judgement),
                        name_of(row.judgement.verdict), words.empty() ? "" : ": ", words);
  }
  text += "\n";
  for (const Footer& footer : footers_of(report)) {
    text += fmt::format("- {}: {}\n", footer.name, footer.text);
  }
  return text;
}

std::string json_of(const CompareReport& report) {
  Json rows = Json::array();
  for (const ComparedRow& row : report.rows) {
    Json object = key_json(row.first);
    const Judgement& judgement = row.judgement;
    object["a_us"] = row.first.times.median_us;
    object["b_us"] = row.second.times.median_us;
    object["ratio"] = finite_json(judgement.ratio);
    object["ratio_low"] = finite_json(judgement.low);
    object["ratio_high"] = finite_json(judgement.high);
    object["verdict"] = name_of(judgement.verdict);
    object["beyond_limit"] = beyond_limit(row, report.limits);
    const std::string words = words_of(row);
    object["note"] = words.empty() ? Json(nullptr) : Json(words);
    rows.push_back(std::move(object));
  }
  const auto alone = [](const std::vector<UnpairedRow>& list) {
    Json out = Json::array();
    for (const UnpairedRow& row : list) {
      Json object = key_json(row.row);
      object["reason"] = row.reason;
      out.push_back(std::move(object));
    }
    return out;
  };
  const Json object = {{"schema", kCompareSchema},
                       {"a", report.first},
                       {"b", report.second},
                       {"device", report.device},
                       {"limit", report.limits.limit},
                       {"min_effect", report.limits.effect},
                       {"min_effect_us", report.limits.effect_us},
                       {"passed", !any_beyond_limit(report)},
                       {"rows", rows},
                       {"only_a", alone(report.only_first)},
                       {"only_b", alone(report.only_second)},
                       {"notes", report.notes}};
  return object.dump(2) + "\n";
}

}  // namespace

std::string render(const CompareReport& report, Format format, bool color) {
  switch (format) {
    case Format::kTable:
      return table_of(report, color);
    case Format::kJson:
      return json_of(report);
    case Format::kMarkdown:
      return markdown_of(report);
    case Format::kCsv:
      break;
  }
  fail(ErrorCode::kInvalidArgument, "a comparison has no csv form; use table, json or md");
}

}  // namespace moe::report
