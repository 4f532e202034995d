#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "checkpoint/json_text.h"
#include "core/check.h"

namespace moe::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kConfig = "config.json";
constexpr const char* kSuffix = ".safetensors";

std::string text_of(const std::string& path) {
  const MappedFile file(path);
  const std::span<const std::byte> bytes = file.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<std::string> safetensors_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name.ends_with(kSuffix)) names.push_back(name);
  }
  if (error) fail(ErrorCode::kIo, "cannot read the folder {}: {}", folder, error.message());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.path_ = path;
  std::error_code error;
  if (!fs::exists(path, error)) {
    fail(ErrorCode::kIo, "cannot read {}: {}", path,
         error ? error.message() : "no such file or folder");
  }
  if (!fs::is_directory(path, error)) {
    const fs::path file(path);
    checkpoint.folder_ = file.has_parent_path() ? file.parent_path().string() : ".";
    checkpoint.add(file.filename().string(),
                   std::make_unique<SafetensorsFile>(path, MappedFile(path)));
  } else {
    checkpoint.folder_ = path;
    const std::vector<std::string> files = safetensors_in(path);
    if (fs::exists(path + "/" + kIndex, error)) {
      checkpoint.read_index(path + "/" + kIndex);
    } else if (files.empty()) {
      fail(ErrorCode::kIo, "{} has neither {} nor a file *{}", path, kIndex, kSuffix);
    } else {
      for (const std::string& name : files) {
        const std::string file = fmt::format("{}/{}", path, name);
        checkpoint.add(name, std::make_unique<SafetensorsFile>(file, MappedFile(file)));
      }
    }
  }
  const std::string config = checkpoint.folder_ + "/" + kConfig;
  if (fs::exists(config, error)) checkpoint.config_ = text_of(config);
  return checkpoint;
}

Checkpoint Checkpoint::of(std::string name, std::vector<SafetensorsFile> files) {
  Checkpoint checkpoint;
  checkpoint.path_ = std::move(name);
  for (SafetensorsFile& file : files) {
    std::string file_name = file.name();
    checkpoint.add(std::move(file_name), std::make_unique<SafetensorsFile>(std::move(file)));
  }
  return checkpoint;
}

void Checkpoint::read_index(const std::string& index) {
  const nlohmann::json document = parse_json(index, text_of(index));
  const auto map = document.is_object() ? document.find("weight_map") : document.end();
  if (map == document.end() || !map->is_object()) {
    fail(ErrorCode::kIo, "{} has no object 'weight_map'", index);
  }
  bool lists_single = false;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) {
      fail(ErrorCode::kIo, "{}: the shard of {} is not a text", index, quote_name(tensor));
    }
    const auto& name = shard.get_ref<const std::string&>();
    // A name, not a path: a checkpoint must not reach for files outside of its folder.
    if (name.find('/') != std::string::npos || name.find('\0') != std::string::npos ||
        !name.ends_with(kSuffix)) {
      fail(ErrorCode::kIo, "{}: the shard {} of {} is not the name of a file *{}", index,
           quote_name(name), quote_name(tensor), kSuffix);
    }
    lists_single = lists_single || name == kSingle;
    names_.emplace(tensor, name);
  }
  std::error_code error;
  if (!lists_single && fs::exists(folder_ + "/" + kSingle, error)) {
    fail(ErrorCode::kIo, "{} has both {} and {}, which does not list it; remove one of them",
         folder_, kSingle, kIndex);
  }
}

void Checkpoint::add(std::string name, std::unique_ptr<SafetensorsFile> file) {
  for (const auto& [tensor, stored] : file->tensors()) {
    const auto [at, is_new] = names_.emplace(tensor, name);
    if (!is_new) {
      fail(ErrorCode::kIo, "{}: tensor {} is in both {} and {}", path_, quote_name(tensor),
           at->second, name);
    }
  }
  files_.emplace(std::move(name), std::move(file));
}

Located Checkpoint::locate(std::string_view name) {
  const auto listed = names_.find(name);
  MOE_CHECK(listed != names_.end(), "{} has no tensor {}", path_, quote_name(name));
  const std::string& shard = listed->second;
  auto file = files_.find(shard);
  if (file == files_.end()) {
    const std::string path = folder_ + "/" + shard;
    auto opened = std::make_unique<SafetensorsFile>(path, MappedFile(path));
    // What the index says of every tensor in the shard, so that no tensor has two places.
    for (const auto& [tensor, stored] : opened->tensors()) {
      const auto at = names_.find(tensor);
      if (at == names_.end() || at->second != shard) {
        fail(ErrorCode::kIo, "{} holds tensor {}, which {} {}", path, quote_name(tensor), kIndex,
             at == names_.end() ? "does not list" : "has in " + at->second);
      }
    }
    file = files_.emplace(shard, std::move(opened)).first;
  }
  const StoredTensor* tensor = file->second->find(name);
  if (tensor == nullptr) {
    fail(ErrorCode::kIo, "{} does not hold tensor {}, which {} has there", file->second->name(),
         quote_name(name), kIndex);
  }
  return {tensor, file->second.get()};
}

std::vector<std::string> Checkpoint::opened() const {
  std::vector<std::string> names;
  names.reserve(files_.size());
  for (const auto& [name, file] : files_) names.push_back(name);
  return names;
}

}  // namespace moe::checkpoint
