// Files of a cache folder: written whole or not at all, believed only when they say what they are.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace moe {

/// FNV-1a: a short, stable name for a text in a file name. The text itself goes into the file, so
/// that two texts with one hash are told apart.
[[nodiscard]] std::uint64_t hash_of(std::string_view text);

/// Now, in UTC: "2026-01-31T12:00:00Z".
[[nodiscard]] std::string utc_now();

/// Makes the folder if it is missing, writes a temporary file in it and renames it, so that readers
/// see the old file or the new one. Returns why it could not be written, "" on success.
[[nodiscard]] std::string write_atomically(const std::string& path, std::string_view content);
/// The bytes of a file; nullopt when it cannot be read.
[[nodiscard]] std::optional<std::string> read_whole(const std::string& path);

/// One JSON document in a cache folder, valid for one key: {"format", "revision", "key", ...}.
class CacheDocument {
 public:
  /// `folder` "off" (or empty): nothing is read or written. `file` is a name without a folder.
  CacheDocument(const std::string& folder, const std::string& file, std::string format,
                int revision);

  struct Found {
    std::string json;     ///< the whole document; "" when there is none to use
    std::string refused;  ///< why a file that is there is not used, as a part of a sentence
  };
  /// Never throws: a damaged or foreign file is as good as none.
  [[nodiscard]] Found load(const nlohmann::json& key) const;
  /// Writes format, revision and key with the members of `body`; as write_atomically().
  [[nodiscard]] std::string save(const nlohmann::json& key, const nlohmann::json& body) const;

  [[nodiscard]] bool enabled() const { return !path_.empty(); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::string format_;
  int revision_;
};

}  // namespace moe
