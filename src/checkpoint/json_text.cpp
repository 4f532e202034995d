#include "checkpoint/json_text.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "core/check.h"

namespace moe::checkpoint {

using nlohmann::json;

std::string printable(std::string_view text) {
  std::string out;
  for (const char letter : text) {
    const auto byte = static_cast<unsigned char>(letter);
    if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += letter;
    }
  }
  return out;
}

std::string quote_name(std::string_view text) {
  constexpr std::size_t kMost = 120;
  if (text.size() <= kMost) return fmt::format("'{}'", printable(text));
  return fmt::format("'{}...' ({} bytes)", printable(text.substr(0, kMost)), text.size());
}

json parse_json(const std::string& file, std::string_view text) {
  constexpr int kDeepest = 16;
  if (text.size() > kMostJsonBytes) {
    fail(ErrorCode::kIo, "{} has {} bytes, more than {}", file, text.size(), kMostJsonBytes);
  }
  std::vector<std::set<std::string>> keys;  // of every object that is open
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kDeepest) {
      fail(ErrorCode::kIo, "{} is nested deeper than {}", file, kDeepest);
    }
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key &&
        !keys.back().insert(value.get_ref<const std::string&>()).second) {
      fail(ErrorCode::kIo, "{} has the key {} twice in one object", file,
           quote_name(value.get_ref<const std::string&>()));
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::parse_error& error) {
    fail(ErrorCode::kIo, "{} is not JSON: the error is at byte {} of {}", file,
         std::min(error.byte, text.size()), text.size());
  } catch (const json::out_of_range&) {
    fail(ErrorCode::kIo, "{} has a number beyond what a double holds", file);
  }
}

}  // namespace moe::checkpoint
