#include "report/html_charts.h"

#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <set>

#include "core/instrument.h"
#include "core/text.h"
#include "report/svg.h"

namespace moe::report {
namespace {

using Json = nlohmann::json;
using Points = std::vector<std::pair<double, double>>;

// Units of the drawings: 400 is the width of a phone, so that text keeps its size there.
constexpr double kWidth = 400;
constexpr double kRowHeight = 30;
constexpr double kPlotLeft = 54;
constexpr double kPlotRight = kWidth - 10;
constexpr double kPlotTop = 12;
constexpr double kPlotBottom = 230;
constexpr double kPlotHeight = 264;

std::string giga_text(double giga) {
  return giga >= 1e3 ? fmt::format("{:g} T", giga / 1e3) : fmt::format("{:g} G", giga);
}

std::string peak_text(double gflops) {
  return gflops >= 1e3 ? fmt::format("{:.4g} TFLOP/s", gflops / 1e3)
                       : fmt::format("{:.4g} GFLOP/s", gflops);
}

std::string count_text(double count) {
  if (count >= 1024 && std::fmod(count, 1024) == 0) return fmt::format("{:g}K", count / 1024);
  return fmt::format("{:g}", count);
}

/// Grid lines and labels; `x_text` and `y_text` name the ticks.
void draw_axes(Svg& svg, const Axis& x, const std::vector<double>& x_ticks, const Axis& y,
               const std::function<std::string(double)>& x_text,
               const std::function<std::string(double)>& y_text, const std::string& x_title) {
  for (const double value : x_ticks) {
    svg.line(x.at(value), kPlotTop, x.at(value), kPlotBottom, "grid");
    svg.text(x.at(value), kPlotBottom + 14, "middle", "tick", x_text(value));
  }
  for (const double value : y.ticks(7)) {
    svg.line(kPlotLeft, y.at(value), kPlotRight, y.at(value), "grid");
    svg.text(kPlotLeft - 5, y.at(value) + 3.5, "end", "tick", y_text(value));
  }
  svg.text((kPlotLeft + kPlotRight) / 2, kPlotHeight - 4, "middle", "tick", x_title);
}

std::string status_words(const ChartRow& row) {
  std::string words = row.row->status;
  std::replace(words.begin(), words.end(), '_', ' ');
  return words;
}

std::string gain_text(const ChartRow& row) {
  const std::optional<double> gain = row.number("gain_vs_previous");
  if (!gain) return {};
  const bool real = row.source->value("distinguishable", Json(false)) == true;
  return fmt::format("{}{:.2f}x", real ? "" : "~", *gain);
}

}  // namespace

std::optional<double> ChartRow::number(const char* name) const {
  const auto found = source->find(name);
  if (found == source->end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

std::string ChartRow::text(const char* name) const {
  const auto found = source->find(name);
  return found == source->end() || !found->is_string() ? std::string() : found->get<std::string>();
}

std::string ChartRow::color() const {
  constexpr int kColors = 10;
  return fmt::format("c{}", row->level_number % kColors);
}

std::string ChartRow::name(const std::vector<ChartRow>& all) const {
  const auto differ = [&](auto&& of) {
    return std::any_of(all.begin(), all.end(), [&](const ChartRow& other) {
      return other.timed() && of(*other.row) != of(*row);
    });
  };
  std::string text = fmt::format("{} {}", row->level_number, row->key.level);
  if (!timed()) return text;
  if (differ([](const ResultRow& one) { return one.key.launch; }))
    text += " [" + row->key.launch + "]";
  if (differ([](const ResultRow& one) { return one.key.cache; }))
    text += " [" + row->key.cache + "]";
  return text;
}

std::string ladder_chart(const std::vector<ChartRow>& rows) {
  double low = 0;
  double high = 0;
  for (const ChartRow& row : rows) {
    if (!row.timed()) continue;
    const RowTimes& times = row.row->times;
    for (const double value :
         {times.fastest_us, times.median_us, row.number("roof_us").value_or(times.median_us)}) {
      low = low == 0 ? value : std::min(low, value);
      high = std::max(high, value);
    }
  }
  const bool any = high > 0;
  const double height = kRowHeight * static_cast<double>(rows.size()) + (any ? 18 : 0);
  Svg svg(kWidth, height, "median time of each level");
  const Axis x(Axis::Scale::kLog, any ? low : 1, any ? high : 10, 8, kWidth - 8);
  const double bottom = kRowHeight * static_cast<double>(rows.size());
  if (any) {
    for (const double value : x.ticks(6)) {
      svg.line(x.at(value), 0, x.at(value), bottom, "grid");
      svg.text(std::clamp(x.at(value), 20.0, kWidth - 24), bottom + 13, "middle", "tick",
               format_microseconds(value));
    }
    const auto timed = std::find_if(rows.begin(), rows.end(), [](const ChartRow& row) {
      return row.timed() && row.number("roof_us").value_or(0) > 0;
    });
    if (timed != rows.end()) {
      const double roof = x.at(timed->number("roof_us").value_or(low));
      svg.line(roof, 0, roof, bottom, "roof");
    }
  }
  double y = 0;
  const ChartRow* before = nullptr;
  for (const ChartRow& row : rows) {
    svg.text(0, y + 12, "start", "name", row.name(rows));
    if (row.timed()) {
      const RowTimes& times = row.row->times;
      svg.text(kWidth - 62, y + 12, "end", "value", format_microseconds(times.median_us));
      svg.text(kWidth, y + 12, "end", "delta", gain_text(row));
      const double track = y + 21;
      if (before != nullptr) {
        svg.line(x.at(before->row->times.median_us), track, x.at(times.median_us), track,
                 "step " + row.color());
      }
      svg.line(x.at(std::max(times.interval.low, x.low())), track,
               x.at(std::min(times.interval.high, x.high())), track, "interval " + row.color());
      svg.dot(
          x.at(times.median_us), track, 4, row.color(),
          fmt::format("{}: {}, 95 % {} to {}, {} samples", row.name(rows),
                      format_microseconds(times.median_us), format_microseconds(times.interval.low),
                      format_microseconds(times.interval.high), row.row->samples));
      before = &row;
    } else {
      svg.text(kWidth, y + 12, "end", "muted", status_words(row));
    }
    y += kRowHeight;
  }
  return svg.str();
}

std::string sweep_chart(const std::vector<ChartRow>& rows, bool stream_floor) {
  std::map<std::string, std::vector<const ChartRow*>> lines;  // by name, in order of tokens
  std::set<double> tokens;
  std::map<double, double> floors;  // by tokens
  double low = 0;
  double high = 0;
  for (const ChartRow& row : rows) {
    tokens.insert(static_cast<double>(row.row->key.problem.shape.tokens));
    lines[row.name(rows)].push_back(&row);
    if (!row.timed()) continue;
    const double value = row.row->times.median_us;
    low = low == 0 ? value : std::min(low, value);
    high = std::max(high, value);
    const std::optional<double> floor = row.number("stream_floor_us");
    if (!stream_floor || !floor) continue;
    floors[static_cast<double>(row.row->key.problem.shape.tokens)] = *floor;
    low = std::min(low, *floor);
  }
  if (high == 0) return {};
  Svg svg(kWidth, kPlotHeight, "median time over tokens");
  const Axis x(Axis::Scale::kLog, *tokens.begin(), *tokens.rbegin(), kPlotLeft + 4, kPlotRight - 4);
  const Axis y(Axis::Scale::kLog, low, high, kPlotBottom, kPlotTop + 26);
  std::vector<double> ticks(tokens.begin(), tokens.end());
  while (ticks.size() > 8) {  // every second one, the last one in any case
    std::vector<double> fewer;
    for (std::size_t i = ticks.size() % 2 == 0 ? 1 : 0; i < ticks.size(); i += 2)
      fewer.push_back(ticks[i]);
    ticks = std::move(fewer);
  }
  draw_axes(svg, x, ticks, y, count_text, format_microseconds, "tokens");
  Points floor;
  for (const auto& [count, value] : floors) floor.emplace_back(x.at(count), y.at(value));
  if (floor.size() > 1) svg.polyline(floor, "floor");
  for (const auto& [name, line] : lines) {
    Points points;
    for (const ChartRow* row : line) {
      if (!row->timed()) continue;
      points.emplace_back(x.at(static_cast<double>(row->row->key.problem.shape.tokens)),
                          y.at(row->row->times.median_us));
    }
    const std::string color = line.front()->color();
    svg.polyline(points, "line " + color);
    for (const ChartRow* row : line) {
      const auto count = static_cast<double>(row->row->key.problem.shape.tokens);
      if (row->timed()) {
        svg.dot(x.at(count), y.at(row->row->times.median_us), 3, color,
                fmt::format("{} T={:g}: {}", name, count,
                            format_microseconds(row->row->times.median_us)));
      } else if (row->row->status != "skipped") {
        // Levels that fail at the same size stand side by side.
        const double shift = 6.0 * (row->row->level_number - 2);
        svg.cross(std::clamp(x.at(count) + shift, kPlotLeft + 4, kPlotRight - 4), kPlotTop + 6, 3,
                  color,
                  fmt::format("{} T={:g}: {}{}{}", name, count, status_words(*row),
                              row->row->reason.empty() ? "" : ": ", row->row->reason));
      }
    }
  }
  std::string legend = "<p class='legend'>";
  for (const auto& [name, line] : lines) {
    legend +=
        fmt::format("<span><i class='{}'></i>{}</span>", line.front()->color(), escape_html(name));
  }
  if (floor.size() > 1) legend += "<span>dashed: the stream floor</span>";
  return svg.str() + legend +
         "<span>&#215; at the top: out of memory, timeout or failed</span></p>";
}

std::string roofline_chart(const std::vector<ChartRow>& rows, const Json& ceilings) {
  const auto rate = [&](const char* name) {
    const auto found = ceilings.find(name);
    return found == ceilings.end() || !found->is_number() ? 0.0 : found->get<double>();
  };
  const double read = rate("read_gbs");
  std::vector<std::pair<std::string, double>> peaks;
  const std::pair<const char*, const char*> names[] = {
      {"fp32", "fp32_gflops"}, {"bf16", "bf16_gflops"}, {"fp8", "fp8_gflops"}};
  for (const auto& [name, field] : names) {
    if (rate(field) > 0) peaks.emplace_back(name, rate(field));
  }
  struct Place {
    const ChartRow* row;
    double intensity;
    double gflops;
  };
  std::vector<Place> places;
  for (const ChartRow& row : rows) {
    const std::optional<double> active = row.number("active_experts");
    if (!row.timed() || !active) continue;
    const double flops = useful_flops(row.row->key.problem);
    const double bytes = minimum_bytes(row.row->key.problem, static_cast<std::int64_t>(*active));
    places.push_back({&row, flops / bytes, flops / (row.row->times.median_us * 1e3)});
  }
  if (places.empty() || peaks.empty() || read == 0) return {};
  double left = places.front().intensity;
  double right = left;
  double low = places.front().gflops;
  double high = 0;
  for (const Place& place : places) {
    left = std::min(left, place.intensity);
    right = std::max(right, place.intensity);
    low = std::min(low, place.gflops);
    high = std::max(high, place.gflops);
  }
  double most = 0;
  for (const auto& [name, peak] : peaks) most = std::max(most, peak);
  right = std::max(right, 1.5 * most / read);  // beyond the ridge
  left = std::min(left, 0.5 * peaks.front().second / read);
  high = std::max(high, most);
  Svg svg(kWidth, kPlotHeight, "roofline");
  const Axis x(Axis::Scale::kLog, left, right, kPlotLeft, kPlotRight);
  const Axis y(Axis::Scale::kLog, low, high, kPlotBottom, kPlotTop);
  draw_axes(
      svg, x, x.ticks(7), y, [](double value) { return fmt::format("{:g}", value); }, giga_text,
      "useful FLOP per byte that must move");
  const double meets_top = std::max(x.low(), y.low() / read);
  double label = kPlotBottom;  // where the last one stands
  for (const auto& [name, peak] : peaks) {
    const double ridge = std::clamp(peak / read, x.low(), x.high());
    svg.line(x.at(ridge), y.at(std::min(peak, read * ridge)), kPlotRight,
             y.at(std::min(peak, read * x.high())), "roof");
    constexpr double kLabelHeight = 12;
    label = std::min(y.at(peak) - 4, label - kLabelHeight);
    svg.text(kPlotRight - 2, label, "end", "tick", name + " " + peak_text(peak));
  }
  const double top = std::min(x.high(), most / read);
  svg.line(x.at(meets_top), y.at(read * meets_top), x.at(top), y.at(read * top), "roof");
  svg.text(x.at(meets_top) + 4,
           std::clamp(y.at(read * meets_top) - 22, kPlotTop + 8, kPlotBottom - 4), "start", "tick",
           fmt::format("read {:.4g} GB/s", read));
  for (const Place& place : places) {
    svg.dot(x.at(place.intensity), y.at(place.gflops), 3.2, place.row->color(),
            fmt::format("{} T={}: {}FLOP/s", place.row->name(rows),
                        place.row->row->key.problem.shape.tokens, peak_text(place.gflops)));
  }
  return svg.str();
}

std::string load_chart(const ChartRow& row) {
  const auto found = row.source->find("expert_load");
  if (found == row.source->end() || found->empty()) return {};
  auto load = found->get<std::vector<double>>();
  const double total = std::accumulate(load.begin(), load.end(), 0.0);
  if (total <= 0) return {};
  const double mean = total / static_cast<double>(load.size());
  std::sort(load.begin(), load.end(), std::greater<>());
  constexpr double kBottom = 130;
  constexpr double kTop = 8;
  Svg svg(kWidth, 150, "rows per expert over the mean");
  const Axis y(Axis::Scale::kLinear, 0, std::max(1.0, load.front() / mean), kBottom, kTop);
  for (const double value : y.ticks(5)) {
    svg.line(kPlotLeft - 20, y.at(value), kPlotRight, y.at(value), "grid");
    svg.text(kPlotLeft - 24, y.at(value) + 3.5, "end", "tick", fmt::format("{:g}x", value));
  }
  const double left = kPlotLeft - 20;
  const double step = (kPlotRight - left) / static_cast<double>(load.size());
  std::vector<double> tops;
  for (const double rows : load) tops.push_back(y.at(rows / mean));
  svg.stairs(left, step, kBottom, tops, "area");
  svg.line(left, y.at(1), kPlotRight, y.at(1), "roof");
  svg.text(left, 146, "start", "tick", "busiest");
  svg.text(kPlotRight, 146, "end", "tick", fmt::format("{} experts", load.size()));
  return svg.str();
}

std::string tolerance_chart(const std::vector<ChartRow>& rows) {
  std::vector<const ChartRow*> compared;
  for (const ChartRow& row : rows) {
    if (row.number("tolerance_used") && (row.row->verified || row.row->status == "failed")) {
      compared.push_back(&row);
    }
  }
  if (compared.empty()) return {};
  Svg svg(kWidth, kRowHeight * static_cast<double>(compared.size()), "error against tolerance");
  double y = 0;
  for (const ChartRow* row : compared) {
    const double used = row->number("tolerance_used").value_or(0);
    svg.text(0, y + 12, "start", "name", row->name(rows));
    const std::optional<double> error = row->number("error");
    svg.text(kWidth, y + 12, "end", "value",
             fmt::format("{:.0f} % of tolerance{}", 100 * used,
                         error ? fmt::format(", error {:.1e}", *error) : std::string()));
    svg.rect(0, y + 18, kWidth, 6, "track");
    svg.rect(0, y + 18, kWidth * std::clamp(used, 0.0, 1.0), 6, used <= 1 ? row->color() : "bad");
    y += kRowHeight;
  }
  return svg.str();
}

}  // namespace moe::report
