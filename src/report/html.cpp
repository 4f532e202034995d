#include "report/html.h"

#include <fmt/core.h>

#include <algorithm>
#include <regex>
#include <set>

#include "core/check.h"
#include "core/text.h"
#include "report/cells.h"
#include "report/html_charts.h"
#include "report/svg.h"

namespace moe::report {
namespace {

using Json = nlohmann::json;

// Colors by level number, of one lightness, so that they read on light and on dark.
constexpr const char* kStyle = R"css(
:root{color-scheme:light dark;--bg:#fdfdfc;--fg:#1c1e21;--muted:#666b73;--line:#e1e3e6;--card:#fff;--roof:#1c1e21}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--fg:#e8eaed;--muted:#9aa0a8;--line:#30343a;--card:#1d2024;--roof:#e8eaed}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:16px;background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif}
h1{font-size:1.4rem;margin:.2em 0}h2{font-size:1.15rem;margin:1.6em 0 .3em;overflow-wrap:anywhere}
h3{font-size:.95rem;margin:0 0 .5em}p{margin:.3em 0}.muted{color:var(--muted)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 12px;margin:.5em 0;font-size:.87rem}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
code{font:.8rem/1.4 ui-monospace,monospace;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));gap:14px;margin:.8em 0;align-items:start}
.card p{font-size:.8rem}.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;min-width:0}
svg{display:block;width:100%;height:auto;font:11px system-ui,sans-serif;overflow:visible}
svg text{fill:var(--fg);paint-order:stroke;stroke:var(--card);stroke-width:3px}svg .tick,svg .muted{fill:var(--muted)}svg .tick{font-size:10px}svg .delta{fill:var(--muted)}
svg .value{font-weight:600}.grid{stroke:var(--line);stroke-width:1}.roof{stroke:var(--roof);stroke-width:1.2;stroke-dasharray:4 3}
.line{fill:none;stroke-width:1.8;stroke:var(--c)}.floor{fill:none;stroke:var(--roof);stroke-width:1.2;stroke-dasharray:4 3}.interval{stroke:var(--c);stroke-width:8;opacity:.35}.step{stroke:var(--c);stroke-width:1.5}
circle,rect{fill:var(--c)}.cross{fill:none;stroke:var(--c);stroke-width:1.8}.track{--c:var(--line)}.bad{--c:#d11f1f}
.area{fill:#3b82c4;fill-opacity:.45;stroke:#3b82c4;stroke-width:1}
.legend{display:flex;flex-wrap:wrap;gap:2px 12px;font-size:.8rem;color:var(--muted)}
.legend i{display:inline-block;width:10px;height:10px;border-radius:5px;background:var(--c);margin-right:4px}
.c0{--c:#8a8f98}.c1{--c:#c2544d}.c2{--c:#d98324}.c3{--c:#b59a1d}.c4{--c:#5b9a3c}.c5{--c:#2f9d8f}.c6{--c:#3b82c4}.c7{--c:#7b62c9}.c8{--c:#c2519b}.c9{--c:#a6673f}
details{border-top:1px solid var(--line)}summary{cursor:pointer;padding:5px 0}
.rows summary{display:grid;grid-template-columns:minmax(0,2.2fr) minmax(0,1fr) minmax(0,1fr) minmax(0,1fr);gap:8px;font-size:.87rem}
.rows span{overflow-wrap:anywhere}.rows span+span{text-align:right}.rows .head{font-size:.8rem;color:var(--muted);cursor:default}
.rows .wide{grid-column:2/-1}
)css";

/// A definition list of what is known.
class Facts {
 public:
  void add(std::string_view name, const std::string& text) {
    if (text.empty()) return;
    body_ += fmt::format("<dt>{}</dt><dd>{}</dd>", escape_html(name), escape_html(text));
  }
  void add_code(std::string_view name, const std::string& text) {
    if (text.empty()) return;
    body_ +=
        fmt::format("<dt>{}</dt><dd><code>{}</code></dd>", escape_html(name), escape_html(text));
  }
  [[nodiscard]] std::string str() const { return "<dl>" + body_ + "</dl>"; }

 private:
  std::string body_;
};

std::string text_at(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || !found->is_string() ? std::string() : found->get<std::string>();
}

/// Files by their names alone: a page is read by others than those whose folders a plan names.
std::string without_folders(const std::string& text) {
  static const std::regex folders("(^|\\s)/(?:[^\\s/]+/)+");
  return std::regex_replace(text, folders, "$1");
}

std::string percent(double fraction) {
  return fmt::format("{:.{}f} %", 100 * fraction, fraction < 0.0995 ? 1 : 0);
}

std::string rates_text(const Json& ceilings) {
  std::string text;
  const std::pair<const char*, const char*> peaks[] = {
      {"fp32", "fp32_gflops"}, {"bf16", "bf16_gflops"}, {"fp8", "fp8_gflops"}};
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  for (const auto& [name, field] : peaks) {
    const auto found = ceilings.find(field);
    if (found == ceilings.end() || !found->is_number()) continue;
    const double giga = found->get<double>();
    add(giga >= 1e4 ? fmt::format("{} {:.1f} TFLOP/s", name, giga / 1e3)
                    : fmt::format("{} {:.1f} GFLOP/s", name, giga));
  }
  const auto read = ceilings.find("read_gbs");
  if (read != ceilings.end() && read->is_number()) {
    add(fmt::format("read {:.4g} GB/s", read->get<double>()));
  }
  return text;
}

std::string environment(const ResultFile& file) {
  const Json& run = file.document.at("run");
  const Json& machine = file.document.at("machine");
  Facts facts;
  facts.add("device", file.device.describe());
  if (file.device.backend == name_of(Backend::kCuda)) {
    const Json& gpu = file.document.at("device");
    facts.add("driver", fmt::format("CUDA {}, built with {}, {}", text_at(gpu, "driver"),
                                    text_at(gpu, "runtime"), text_at(gpu, "library")));
    facts.add("gpu", file.device.uuid);
    facts.add("host", text_at(machine, "cpu"));
  }
  facts.add("system", fmt::format("{}, {}, {}", text_at(machine, "os"), text_at(machine, "kernel"),
                                  text_at(machine, "compiler")));
  facts.add("ceilings", rates_text(file.document.at("ceilings")));
  facts.add("commit", file.commit + (file.modified ? " (modified)" : ""));
  facts.add("measured", file.started);
  const auto steal = run.find("steal_fraction");
  if (steal != run.end() && steal->is_number()) {
    facts.add("steal", percent(steal->get<double>()) + " of the processor time, taken by the host");
  }
  const auto others = run.find("others_fraction");
  if (others != run.end() && others->is_number()) {
    facts.add("other programs", percent(others->get<double>()) + " of the processor time");
  }
  std::string noise;
  for (const Json& floor : run.at("noise")) {
    noise +=
        fmt::format("{}T={} {}", noise.empty() ? "" : ", ", floor.at("tokens").get<std::int64_t>(),
                    percent(floor.at("relative").get<double>()));
  }
  facts.add("noise (A/A)", noise);
  facts.add("left out", text_at(run, "preset_limits"));
  facts.add_code("repro", text_at(run, "repro"));
  return facts.str();
}

std::string card(const std::string& title, const std::string& body, const std::string& note = "") {
  if (body.empty()) return {};
  return fmt::format("<div class='card'><h3>{}</h3>{}{}</div>", escape_html(title), body,
                     note.empty() ? "" : "<p class='muted'>" + escape_html(note) + "</p>");
}

/// One row: a line, and behind it everything else.
std::string row_html(const ChartRow& row, const std::vector<ChartRow>& all) {
  const RowKey& key = row.row->key;
  const std::string name = fmt::format("{} T={}", row.name(all), key.problem.shape.tokens);
  std::string line = fmt::format("<span>{}</span>", escape_html(name));
  if (row.timed()) {
    const bool real = row.source->value("distinguishable", Json(false)) == true;
    const std::optional<double> gain = row.number("gain_vs_previous");
    const std::optional<double> share = row.number("ceiling_fraction");
    line += fmt::format("<span>{}</span><span>{}</span><span>{}</span>",
                        format_microseconds(row.row->times.median_us),
                        gain ? fmt::format("{}{:.2f}x", real ? "" : "~", *gain) : "-",
                        share ? percent(*share) : "-");
  } else {
    std::string status = row.row->status;
    std::replace(status.begin(), status.end(), '_', ' ');
    line += fmt::format("<span class='wide muted'>{}</span>", escape_html(status));
  }
  Facts facts;
  facts.add("what it does", row.text("technique"));
  facts.add("reason", row.row->reason);
  facts.add("problem",
            fmt::format("{} {}, {}{}, skew {}, seed {}", key.backend, name_of(key.problem.dtype),
                        to_string(key.problem.shape), block_text(key.problem), key.skew, key.seed));
  if (row.timed()) {
    const RowTimes& times = row.row->times;
    facts.add("conditions", fmt::format("{} launches, {} caches, {} threads, {}", key.launch,
                                        key.cache, key.threads, row.text("isa")));
    facts.add("median", fmt::format("{}, 95 % from {} to {}, fastest {}, {} samples",
                                    format_microseconds(times.median_us),
                                    format_microseconds(times.interval.low),
                                    format_microseconds(times.interval.high),
                                    format_microseconds(times.fastest_us), row.row->samples));
    if (const auto share = row.number("stream_fraction")) {
      facts.add("stream",
                fmt::format("{:.4g} GB/s of weights of {:g} active experts, {} of the "
                            "stream floor, {}",
                            row.number("weight_gbs").value_or(0),
                            row.number("active_experts").value_or(0), percent(*share),
                            format_microseconds(row.number("stream_floor_us").value_or(0))));
    }
    facts.add("rate", fmt::format("{:.1f} useful GFLOP/s, {:.0f} tokens/s",
                                  row.number("gflops").value_or(0),
                                  row.number("tokens_per_s").value_or(0)));
    if (const auto used = row.number("tolerance_used")) {
      facts.add("error", fmt::format("{:.1e}, {:.0f} % of the tolerance, {}",
                                     row.number("error").value_or(0), 100 * *used,
                                     row.row->verified ? "verified" : "not verified"));
    }
    if (const auto peak = row.number("peak_bytes")) {
      facts.add("memory", format_bytes(static_cast<std::uint64_t>(*peak)) + " beside the weights");
    }
    facts.add("plan", without_folders(row.text("plan")));
  }
  facts.add("notes", row.text("notes"));
  facts.add_code("repro", row.text("repro"));
  return fmt::format("<details><summary>{}</summary>{}</details>", line, facts.str());
}

/// Rows that share the problem, of whatever level, launch and cache.
std::vector<std::vector<ChartRow>> by_problem(const std::vector<ChartRow>& rows) {
  std::vector<std::vector<ChartRow>> groups;
  for (const ChartRow& row : rows) {
    const auto found = std::find_if(groups.begin(), groups.end(), [&](const auto& group) {
      const RowKey& key = group.front().row->key;
      return key.problem == row.row->key.problem && key.skew == row.row->key.skew &&
             key.seed == row.row->key.seed;
    });
    if (found == groups.end()) {
      groups.push_back({row});
    } else {
      found->push_back(row);
    }
  }
  return groups;
}

std::string problem_cards(const std::vector<ChartRow>& rows) {
  std::string cards =
      card("Ladder", ladder_chart(rows),
           "Median on a log axis, with its 95 % interval; gain over the level before, ~ where it "
           "is not distinguishable from noise. Dashed: the roof.");
  const auto routed = std::find_if(rows.begin(), rows.end(), [](const ChartRow& row) {
    return row.number("active_experts").has_value();
  });
  if (routed != rows.end()) {
    cards +=
        card("Load of the experts", load_chart(*routed),
             fmt::format("Rows per expert over the mean, busiest first. {:g} of {} experts active, "
                         "the busiest has {:.2f}x the mean.",
                         routed->number("active_experts").value_or(0),
                         routed->row->key.problem.shape.experts,
                         routed->number("max_over_mean").value_or(0)));
  }
  cards += card("Error against tolerance", tolerance_chart(rows),
                "Worst row of all compared outputs, against the fp64 oracle.");
  return "<div class='cards'>" + cards + "</div>";
}

std::string section(const ResultFile& file) {
  std::vector<ChartRow> rows;
  const Json& sources = file.document.at("rows");
  rows.reserve(file.rows.size());
  for (std::size_t i = 0; i < file.rows.size(); ++i) rows.push_back({&sources[i], &file.rows[i]});
  std::string html =
      fmt::format("<section><h2>{}{}{}</h2><p class='muted'>{}</p>{}", escape_html(file.suite),
                  file.preset.empty() ? "" : " · ", escape_html(file.preset),
                  escape_html(file.path), environment(file));
  if (rows.empty()) return html + "<p>No rows.</p></section>";
  const std::vector<std::vector<ChartRow>> problems = by_problem(rows);
  std::string wide;
  if (problems.size() > 1) {
    const bool decode = file.suite == "moe_decode";
    wide += card("Over tokens", sweep_chart(rows, decode),
                 decode ? "Median time of a forward, both axes log. Dashed: the weights of the "
                          "active experts at the measured read rate, and an empty kernel."
                        : "Median time of a forward, both axes log.");
  }
  wide += card("Roofline", roofline_chart(rows, file.document.at("ceilings")),
               "Useful FLOP/s of each row under the ceilings that were measured beside it.");
  if (!wide.empty()) html += "<div class='cards'>" + wide + "</div>";
  for (const std::vector<ChartRow>& group : problems) {
    const RowKey& key = group.front().row->key;
    const std::string title =
        fmt::format("{} {}, {}{}, skew {}", key.backend, name_of(key.problem.dtype),
                    to_string(key.problem.shape), block_text(key.problem), key.skew);
    html += problems.size() == 1
                ? fmt::format("<h3>{}</h3>{}", escape_html(title), problem_cards(group))
                : fmt::format("<details{}><summary>{}</summary>{}</details>",
                              &group == &problems.back() ? " open" : "", escape_html(title),
                              problem_cards(group));
  }
  html +=
      "<h3>Every row</h3><div class='rows'><details><summary class='head'><span>level</span>"
      "<span>median</span><span>change</span><span>of the roof</span></summary><p class='muted'>"
      "Change: over the level before. A row opens to what was measured and to the command that "
      "measures it "
      "again.</p></details>";
  for (const ChartRow& row : rows) html += row_html(row, rows);
  return html + "</div></section>";
}

}  // namespace

std::string render_html(const std::vector<ResultFile>& files) {
  std::size_t rows = 0;
  for (const ResultFile& file : files) rows += file.rows.size();
  MOE_CHECK(rows > 0, "none of {} files has a row", files.size());
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
      "content='width=device-width,initial-scale=1'><title>MoE layer: {} rows</title><link "
      "rel='icon' "
      "href='data:,'><style>{}</style></head><body><h1>MoE layer, measured</h1><p class='muted'>{} "
      "rows of {} "
      "{}. Every time is of a layer whose outputs were compared with an fp64 oracle.</p>\n",
      rows, kStyle, rows, files.size(), files.size() == 1 ? "file" : "files");
  for (const ResultFile& file : files) html += section(file) + "\n";
  return html + "</body></html>\n";
}

}  // namespace moe::report
