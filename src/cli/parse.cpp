#include "cli/parse.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "core/check.h"

namespace moe::cli {
namespace {

constexpr std::int64_t kMostTokens = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kMostPoints = 1000;

template <class Number>
Number parse_whole(std::string_view option, std::string_view text, Number least, Number most) {
  Number value{};
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  MOE_CHECK(parsed.ec != std::errc::result_out_of_range, "{}: {} does not fit in 64 bits", option,
            text);
  MOE_CHECK(parsed.ec == std::errc() && parsed.ptr == text.data() + text.size(),
            "{}: '{}' is not a whole number", option, text);
  MOE_CHECK(value >= least && value <= most, "{}: {} is not between {} and {}", option, value,
            least, most);
  return value;
}

/// "FIRST:LAST:*FACTOR" or "FIRST:LAST:+STEP"
void append_range(std::string_view option, std::string_view text, std::vector<std::int64_t>& out) {
  const std::vector<std::string_view> parts = split(text, ':');
  MOE_CHECK(parts.size() == 3 && parts[2].size() >= 2 && (parts[2][0] == '*' || parts[2][0] == '+'),
            "{}: '{}' is not a range FIRST:LAST:*FACTOR or FIRST:LAST:+STEP", option, text);
  const bool multiply = parts[2][0] == '*';
  const std::int64_t first = parse_integer(option, parts[0], 1, kMostTokens);
  const std::int64_t last = parse_integer(option, parts[1], first, kMostTokens);
  const std::int64_t step =
      parse_integer(option, parts[2].substr(1), multiply ? 2 : 1, kMostTokens);
  for (std::int64_t value = first; value <= last; value = multiply ? value * step : value + step) {
    MOE_CHECK(out.size() < kMostPoints, "{}: '{}' is more than {} points", option, text,
              kMostPoints);
    out.push_back(value);
  }
}

}  // namespace

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

std::int64_t parse_integer(std::string_view option, std::string_view text, std::int64_t least,
                           std::int64_t most) {
  return parse_whole(option, text, least, most);
}

std::uint64_t parse_seed(std::string_view option, std::string_view text) {
  return parse_whole<std::uint64_t>(option, text, 0, std::numeric_limits<std::uint64_t>::max());
}

double parse_seconds(std::string_view option, std::string_view text) {
  double value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  MOE_CHECK(parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() &&
                std::isfinite(value) && value >= 0,
            "{}: '{}' is not a number of seconds of at least 0", option, text);
  return value;
}

std::uint64_t parse_bytes(std::string_view option, std::string_view text) {
  constexpr std::array<std::pair<std::string_view, int>, 10> kUnits = {{{"B", 0},
                                                                        {"K", 10},
                                                                        {"KiB", 10},
                                                                        {"M", 20},
                                                                        {"MiB", 20},
                                                                        {"G", 30},
                                                                        {"GiB", 30},
                                                                        {"T", 40},
                                                                        {"TiB", 40},
                                                                        {"", 0}}};
  const std::size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  const std::string_view unit = text.substr(digits);
  for (const auto& [name, shift] : kUnits) {
    if (unit != name || digits == 0) continue;
    const std::uint64_t most = std::numeric_limits<std::uint64_t>::max() >> shift;
    return parse_whole<std::uint64_t>(option, text.substr(0, digits), 1, most) << shift;
  }
  fail(ErrorCode::kInvalidArgument,
       "{}: '{}' is not a number of bytes such as 1048576, 512MiB or 6GiB", option, text);
}

Shape parse_thiek(std::string_view text) {
  const std::vector<std::string_view> parts = split(text, ',');
  MOE_CHECK(parts.size() == 5, "--thiek: '{}' has {} values, but T,H,I,E,K are 5", text,
            parts.size());
  std::array<std::int64_t, 5> sizes{};
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    sizes[i] = parse_integer("--thiek", parts[i], std::numeric_limits<std::int64_t>::min(),
                             std::numeric_limits<std::int64_t>::max());
  }
  const Shape shape{.tokens = sizes[0],
                    .hidden = sizes[1],
                    .intermediate = sizes[2],
                    .experts = sizes[3],
                    .top_k = sizes[4]};
  validate(shape);
  return shape;
}

std::vector<std::int64_t> parse_tokens_axis(std::string_view text) {
  constexpr std::string_view kAxis = "tokens=";
  const std::size_t equals = text.find('=');
  MOE_CHECK(equals != std::string_view::npos && text.substr(0, equals + 1) == kAxis,
            "--axis: '{}' does not begin with 'tokens='", text);
  std::vector<std::int64_t> tokens;
  for (const std::string_view part : split(text.substr(kAxis.size()), ',')) {
    if (part.find(':') != std::string_view::npos) {
      append_range("--axis tokens", part, tokens);
    } else {
      tokens.push_back(parse_integer("--axis tokens", part, 1, kMostTokens));
    }
  }
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  return tokens;
}

}  // namespace moe::cli
