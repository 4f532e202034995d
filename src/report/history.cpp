#include "report/history.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/text.h"
#include "report/key_json.h"

namespace moe::report {
namespace {

using Json = nlohmann::ordered_json;

History& history_for(std::vector<History>& histories, const std::string& device,
                     const RowKey& key) {
  const auto found = std::find_if(histories.begin(), histories.end(), [&](const History& history) {
    return history.device == device && history.points.front().row.key == key;
  });
  if (found != histories.end()) return *found;
  return histories.emplace_back(History{device, {}});
}

std::string build_text(const ResultFile& file) {
  const std::string commit = file.commit.empty() ? "-" : file.commit.substr(0, 10);
  return file.modified ? commit + "+" : commit;
}

std::string interval_text(const RowTimes& times) {
  return fmt::format("{} to {}", format_microseconds(times.interval.low),
                     format_microseconds(times.interval.high));
}

std::string change_text(const HistoryPoint& point) {
  return point.change ? fmt::format("{:+.1f} %", 100 * (point.change->ratio - 1)) : "";
}

std::string_view verdict_text(const HistoryPoint& point) {
  return point.change ? name_of(point.change->verdict) : std::string_view();
}

std::string title_of(const History& history, const std::vector<RowKey>& keys) {
  const ResultRow& row = history.points.front().row;
  return fmt::format("{}, {}, {}", label_of(row, keys), name_of(row.key.problem.dtype),
                     history.device);
}

std::vector<RowKey> keys_of(const std::vector<History>& histories) {
  std::vector<RowKey> keys;
  keys.reserve(histories.size());
  for (const History& history : histories) keys.push_back(history.points.front().row.key);
  return keys;
}

std::string without_trailing_spaces(std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  return line + "\n";
}

std::string table_of(const std::vector<History>& histories, bool color) {
  const std::vector<RowKey> keys = keys_of(histories);
  std::string text;
  for (const History& history : histories) {
    const std::string title = title_of(history, keys);
    text += (text.empty() ? "" : "\n") + (color ? "\x1b[1m" + title + "\x1b[0m" : title) + "\n";
    for (const HistoryPoint& point : history.points) {
      text += without_trailing_spaces(fmt::format(
          "  {:<16}  {:<11}  {:>10}  {:>24}  {:>9}  {:<6}  {}", point.file->started.substr(0, 16),
          build_text(*point.file), format_microseconds(point.row.times.median_us),
          interval_text(point.row.times), change_text(point), verdict_text(point),
          point.file->path));
    }
  }
  return text +
         "\n+ after a commit: modified sources. Change and verdict are against the line above.\n";
}

std::string markdown_of(const std::vector<History>& histories) {
  const std::vector<RowKey> keys = keys_of(histories);
  std::string text =
      "| row | measured | commit | median | interval | change | verdict | file |\n"
      "|---|---|---|---:|---:|---:|---|---|\n";
  for (const History& history : histories) {
    for (const HistoryPoint& point : history.points) {
      text += fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} |\n", title_of(history, keys),
                          point.file->started, build_text(*point.file),
                          format_microseconds(point.row.times.median_us),
                          interval_text(point.row.times), change_text(point), verdict_text(point),
                          point.file->path);
    }
  }
  return text;
}

std::string json_of(const std::vector<History>& histories) {
  Json series = Json::array();
  for (const History& history : histories) {
    Json points = Json::array();
    for (const HistoryPoint& point : history.points) {
      points.push_back(
          {{"file", point.file->path},
           {"started", point.file->started},
           {"commit", point.file->commit.empty() ? Json(nullptr) : Json(point.file->commit)},
           {"modified", point.file->modified},
           {"median_us", point.row.times.median_us},
           {"low_us", point.row.times.interval.low},
           {"high_us", finite_json(point.row.times.interval.high)},
           {"ratio", point.change ? Json(point.change->ratio) : Json(nullptr)},
           {"verdict", point.change ? Json(name_of(point.change->verdict)) : Json(nullptr)}});
    }
    Json object = key_json(history.points.front().row);
    object["device"] = history.device;
    object["points"] = std::move(points);
    series.push_back(std::move(object));
  }
  return Json{{"schema", kHistorySchema}, {"series", series}}.dump(2) + "\n";
}

}  // namespace

std::vector<History> history_of(const std::vector<ResultFile>& files, const CompareLimits& limits) {
  std::vector<const ResultFile*> by_time;
  by_time.reserve(files.size());
  for (const ResultFile& file : files) by_time.push_back(&file);
  std::stable_sort(by_time.begin(), by_time.end(), [](const ResultFile* a, const ResultFile* b) {
    return a->started < b->started;
  });
  std::vector<History> histories;
  for (const ResultFile* file : by_time) {
    for (const ResultRow& row : file->rows) {
      if (row.status != name_of(RowStatus::kOk) || row.samples == 0 || !row.verified) continue;
      History& history = history_for(histories, file->device.describe(), row.key);
      HistoryPoint point{file, row, {}};
      if (!history.points.empty()) {
        point.change = judge(history.points.back().row.times, row.times, limits);
      }
      history.points.push_back(std::move(point));
    }
  }
  MOE_CHECK(!histories.empty(), "none of {} files has a measured and verified row", files.size());
  return histories;
}

std::string render(const std::vector<History>& histories, Format format, bool color) {
  switch (format) {
    case Format::kTable:
      return table_of(histories, color);
    case Format::kJson:
      return json_of(histories);
    case Format::kMarkdown:
      return markdown_of(histories);
    case Format::kCsv:
      break;
  }
  fail(ErrorCode::kInvalidArgument, "a history has no csv form; use table, json or md");
}

}  // namespace moe::report
