// The command lines of the programs in bench/: words, flags and `--name VALUE`.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"

namespace moe {

/// Options are taken out one by one; words() then gives what is left and refuses what was not known.
class Arguments {
 public:
  Arguments(int argc, char** argv) : left_(argv + 1, argv + argc) {}

  /// Whether `--name` stands there.
  [[nodiscard]] bool flag(std::string_view name) {
    const auto found = std::find(left_.begin(), left_.end(), name);
    if (found == left_.end()) return false;
    left_.erase(found);
    return true;
  }
  /// The value behind `--name`; throws Error(kInvalidArgument) when nothing follows.
  [[nodiscard]] std::string text(std::string_view name, std::string otherwise) {
    const auto found = std::find(left_.begin(), left_.end(), name);
    if (found == left_.end()) return otherwise;
    MOE_CHECK(found + 1 != left_.end(), "{} needs a value", name);
    std::string value = *(found + 1);
    left_.erase(found, found + 2);
    return value;
  }
  /// A whole number of at least `least`.
  [[nodiscard]] std::int64_t number(std::string_view name, std::int64_t otherwise,
                                    std::int64_t least = 1) {
    const std::string value = text(name, "");
    return value.empty() ? otherwise : parse(name, value, least);
  }
  /// "a,b,c"
  [[nodiscard]] std::vector<std::string> list(std::string_view name,
                                              std::vector<std::string> otherwise) {
    const std::string value = text(name, "");
    return value.empty() ? std::move(otherwise) : split(value);
  }
  /// "1,2,3", each at least `least`.
  [[nodiscard]] std::vector<std::int64_t> numbers(std::string_view name,
                                                  std::vector<std::int64_t> otherwise,
                                                  std::int64_t least = 1) {
    const std::string value = text(name, "");
    if (value.empty()) return otherwise;
    std::vector<std::int64_t> values;
    for (const std::string& one : split(value)) values.push_back(parse(name, one, least));
    return values;
  }
  /// What no call above took. Throws Error(kInvalidArgument) for an option among it.
  [[nodiscard]] std::vector<std::string> words() const {
    for (const std::string& word : left_) {
      MOE_CHECK(!word.starts_with("--"), "unknown option {}", word);
    }
    return left_;
  }

 private:
  static std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> parts;
    std::stringstream list(text);
    for (std::string part; std::getline(list, part, ',');) parts.push_back(part);
    return parts;
  }
  static std::int64_t parse(std::string_view name, const std::string& text, std::int64_t least) {
    std::int64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    MOE_CHECK(error == std::errc() && stop == end && value >= least,
              "{}: '{}' is not a whole number of at least {}", name, text, least);
    return value;
  }

  std::vector<std::string> left_;
};

}  // namespace moe
