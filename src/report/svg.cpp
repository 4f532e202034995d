#include "report/svg.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

namespace moe::report {
namespace {

constexpr std::array<double, 3> kSteps = {1, 2, 5};

/// The largest 1, 2 or 5 times a power of ten that is not above `value`, or the smallest not below.
double round_down(double value) {
  const double power = std::pow(10, std::floor(std::log10(value)));
  double best = power;
  for (const double step : kSteps) {
    if (step * power <= value * (1 + 1e-9)) best = step * power;
  }
  return best;
}
double round_up(double value) {
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double step : kSteps) {
    if (step * power >= value * (1 - 1e-9)) return step * power;
  }
  return 10 * power;
}

/// Pixels to a tenth.
std::string pixel(double value) {
  return fmt::format("{:.5g}", std::round(value * 10) / 10);
}

std::string titled(std::string_view title) {
  return title.empty() ? std::string() : fmt::format("<title>{}</title>", escape_html(title));
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char letter : text) {
    switch (letter) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += letter;
    }
  }
  return out;
}

Axis::Axis(Scale scale, double low, double high, double first, double last)
    : scale_(scale), low_(low), high_(high), first_(first), last_(last) {
  if (scale_ == Scale::kLog) {
    low_ = round_down(low);
    high_ = round_up(high);
    if (low_ == high_) high_ = round_up(high * 1.5);
  }
}

double Axis::at(double value) const {
  const double part = scale_ == Scale::kLog ? std::log(value / low_) / std::log(high_ / low_)
                                            : (value - low_) / (high_ - low_);
  return first_ + part * (last_ - first_);
}

std::vector<double> Axis::ticks(std::size_t most) const {
  std::vector<double> all;
  if (scale_ == Scale::kLinear) {
    const double step = round_up((high_ - low_) / static_cast<double>(most - 1));
    for (double value = low_; value <= high_ * (1 + 1e-9); value += step) all.push_back(value);
    return all;
  }
  // 1, 2, 5 while they fit, else powers of ten, else every second one, and so on.
  for (double power = std::pow(10, std::floor(std::log10(low_) + 1e-9)); power <= high_ * 1.001;
       power *= 10) {
    for (const double step : kSteps) {
      const double value = step * power;
      if (value >= low_ * 0.999 && value <= high_ * 1.001) all.push_back(value);
    }
  }
  if (all.size() <= most) return all;
  const auto exponent = [](double value) {
    return static_cast<int>(std::floor(std::log10(value) + 1e-9));
  };
  std::vector<double> kept = all;
  for (int every = 1; kept.size() > most; ++every) {
    kept.clear();
    std::copy_if(all.begin(), all.end(), std::back_inserter(kept), [&](double value) {
      const int power = exponent(value);
      return power % every == 0 && std::abs(value / std::pow(10, power) - 1) < 1e-6;
    });
  }
  return kept;
}

Svg::Svg(double width, double height, std::string_view title)
    : body_(fmt::format("<svg viewBox='0 0 {:g} {:g}' role='img' aria-label='{}'>", width, height,
                        escape_html(title))) {}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view classes) {
  body_ += fmt::format("<line x1='{}' y1='{}' x2='{}' y2='{}' class='{}'/>", pixel(x1), pixel(y1),
                       pixel(x2), pixel(y2), classes);
}

void Svg::dot(double x, double y, double radius, std::string_view classes, std::string_view title) {
  body_ += fmt::format("<circle cx='{}' cy='{}' r='{:g}' class='{}'>{}</circle>", pixel(x),
                       pixel(y), radius, classes, titled(title));
}

void Svg::cross(double x, double y, double radius, std::string_view classes,
                std::string_view title) {
  body_ += fmt::format("<path d='M{} {}l{:g} {:g}m0 -{:g}l-{:g} {:g}' class='cross {}'>{}</path>",
                       pixel(x - radius), pixel(y - radius), 2 * radius, 2 * radius, 2 * radius,
                       2 * radius, 2 * radius, classes, titled(title));
}

void Svg::rect(double x, double y, double width, double height, std::string_view classes,
               std::string_view title) {
  body_ += fmt::format("<rect x='{}' y='{}' width='{}' height='{}' class='{}'>{}</rect>", pixel(x),
                       pixel(y), pixel(width), pixel(height), classes, titled(title));
}

void Svg::text(double x, double y, std::string_view anchor, std::string_view classes,
               std::string_view text) {
  body_ += fmt::format("<text x='{}' y='{}' class='{}' text-anchor='{}'>{}</text>", pixel(x),
                       pixel(y), classes, anchor, escape_html(text));
}

void Svg::polyline(const std::vector<std::pair<double, double>>& points, std::string_view classes) {
  std::string list;
  for (const auto& [x, y] : points) {
    list += fmt::format("{}{} {}", list.empty() ? "" : " ", pixel(x), pixel(y));
  }
  body_ += fmt::format("<polyline points='{}' class='{}'/>", list, classes);
}

void Svg::stairs(double left, double width, double bottom, const std::vector<double>& tops,
                 std::string_view classes) {
  std::string path = fmt::format("M{} {}", pixel(left), pixel(bottom));
  std::string top = pixel(bottom);
  for (std::size_t i = 0; i < tops.size(); ++i) {
    if (pixel(tops[i]) == top) continue;  // as high as the bar before, to a tenth of a pixel
    top = pixel(tops[i]);
    path += fmt::format("H{}V{}", pixel(left + width * static_cast<double>(i)), top);
  }
  path +=
      fmt::format("H{}V{}", pixel(left + width * static_cast<double>(tops.size())), pixel(bottom));
  body_ += fmt::format("<path d='{}' class='{}'/>", path, classes);
}

}  // namespace moe::report
