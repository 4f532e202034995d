// A folder of safetensors files as one set of named tensors.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"

namespace moe::checkpoint {

/// A tensor and the file that holds it. Both live as long as the checkpoint.
struct Located {
  const StoredTensor* tensor = nullptr;
  const SafetensorsFile* shard = nullptr;
};

/// Movable, not copyable; not safe to use from several threads.
class Checkpoint {
 public:
  /// `path` is a safetensors file or a folder with
  ///   model.safetensors.index.json, which says what shard holds what: a shard is opened when one of
  ///   its tensors is asked for, or
  ///   one or more *.safetensors without an index: the headers of all are read, no data.
  /// Throws Error(kIo): nothing of this kind is there, an index beside a model.safetensors that it
  /// does not list, an index that names files elsewhere, one tensor in two files, a damaged file.
  static Checkpoint open(const std::string& path);
  /// Of files that are open already, without a folder; `name` stands for them in messages.
  static Checkpoint of(std::string name, std::vector<SafetensorsFile> files);

  [[nodiscard]] const std::string& path() const { return path_; }
  /// Every tensor, with the name of the file that holds it; by name.
  [[nodiscard]] const std::map<std::string, std::string, std::less<>>& names() const {
    return names_;
  }
  /// Opens the shard. `name` is one of names(). Throws Error(kIo) when the shard is missing, damaged
  /// or does not hold what the index says.
  [[nodiscard]] Located locate(std::string_view name);
  /// Names of the files opened so far.
  [[nodiscard]] std::vector<std::string> opened() const;
  /// The text of config.json; nullopt without one.
  [[nodiscard]] const std::optional<std::string>& config() const { return config_; }

 private:
  void read_index(const std::string& index);
  void add(std::string name, std::unique_ptr<SafetensorsFile> file);

  std::string path_;
  std::string folder_;
  std::map<std::string, std::string, std::less<>> names_;
  std::map<std::string, std::unique_ptr<SafetensorsFile>, std::less<>> files_;  // open ones
  std::optional<std::string> config_;
};

}  // namespace moe::checkpoint
