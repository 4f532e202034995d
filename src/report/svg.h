// Drawing on two axes, as text: the charts of the HTML report.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moe::report {

/// & < > " ' as entities.
[[nodiscard]] std::string escape_html(std::string_view text);

/// Values on one direction of a chart. Log axes need values above 0.
class Axis {
 public:
  enum class Scale { kLinear, kLog };
  /// Values from `low` to `high` on the pixels from `first` to `last`; log axes are widened to whole
  /// steps of 1, 2 and 5.
  Axis(Scale scale, double low, double high, double first, double last);
  [[nodiscard]] double at(double value) const;
  /// Some round values within the axis, at most `most`.
  [[nodiscard]] std::vector<double> ticks(std::size_t most) const;
  [[nodiscard]] double low() const { return low_; }
  [[nodiscard]] double high() const { return high_; }

 private:
  Scale scale_;
  double low_;
  double high_;
  double first_;
  double last_;
};

/// An inline SVG of `width` times `height` units that fills its container. Classes are the page's.
class Svg {
 public:
  Svg(double width, double height, std::string_view title);
  void line(double x1, double y1, double x2, double y2, std::string_view classes);
  void dot(double x, double y, double radius, std::string_view classes, std::string_view title);
  /// A cross of +-`radius`.
  void cross(double x, double y, double radius, std::string_view classes, std::string_view title);
  void rect(double x, double y, double width, double height, std::string_view classes,
            std::string_view title = "");
  /// `anchor`: "start", "middle" or "end".
  void text(double x, double y, std::string_view anchor, std::string_view classes,
            std::string_view text);
  void polyline(const std::vector<std::pair<double, double>>& points, std::string_view classes);
  /// The outline of bars side by side, each `width` wide, from `left` on, that stand on `bottom`.
  void stairs(double left, double width, double bottom, const std::vector<double>& tops,
              std::string_view classes);
  [[nodiscard]] std::string str() const { return body_ + "</svg>"; }

 private:
  std::string body_;
};

}  // namespace moe::report
