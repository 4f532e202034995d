#include "core/cache_file.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

namespace moe {

using nlohmann::json;

std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = 14695981039346656037U;
  for (const char letter : text) {
    hash = (hash ^ static_cast<unsigned char>(letter)) * 1099511628211U;
  }
  return hash;
}

std::string utc_now() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

std::string write_atomically(const std::string& path, std::string_view content) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return fmt::format("cannot create {}: {}", folder.string(), error.message());
  // Of this process and this call: two layers of one process may save at once.
  static std::atomic<unsigned> calls{0};
  const std::string temporary = fmt::format("{}.{}.{}.tmp", path, getpid(), calls++);
  std::ofstream file(temporary, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file) {
    std::filesystem::remove(temporary, error);
    return fmt::format("cannot write {}", temporary);
  }
  std::filesystem::rename(temporary, path, error);
  if (error) {
    const std::string reason = error.message();
    std::filesystem::remove(temporary, error);
    return fmt::format("cannot rename to {}: {}", path, reason);
  }
  return {};
}

std::optional<std::string> read_whole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::string content(std::istreambuf_iterator<char>(file), {});
  if (file.bad()) return std::nullopt;
  return content;
}

CacheDocument::CacheDocument(const std::string& folder, const std::string& file, std::string format,
                             int revision)
    : format_(std::move(format)), revision_(revision) {
  if (folder.empty() || folder == "off") return;
  path_ = folder + "/" + file;
}

CacheDocument::Found CacheDocument::load(const json& key) const {
  if (!enabled()) return {};
  std::optional<std::string> text = read_whole(path_);
  if (!text) return {};
  // Without exceptions: a discarded value is not an object.
  const json stored = json::parse(*text, nullptr, false);
  if (!stored.is_object()) return {{}, "it is damaged"};
  const auto is = [&](const char* member, const json& expected) {
    const auto at = stored.find(member);
    return at != stored.end() && *at == expected;
  };
  if (!is("format", format_)) return {{}, "it is another program's"};
  if (!is("revision", revision_)) return {{}, "it is another revision's"};
  if (!is("key", key)) return {{}, "it was made for something else"};
  return {std::move(*text), {}};
}

std::string CacheDocument::save(const json& key, const json& body) const {
  if (!enabled()) return {};
  json document = body;
  document["format"] = format_;
  document["revision"] = revision_;
  document["key"] = key;
  return write_atomically(path_, document.dump(1) + "\n");
}

}  // namespace moe
