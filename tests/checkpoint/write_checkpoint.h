// Writes tiny safetensors files, sound ones and damaged ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"
#include "core/scalar.h"
#include "temporary_folder.h"

namespace moe::test {

using Bytes = std::string;

template <class Value>
void append(Bytes& bytes, Value value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

inline Bytes f32_bytes(const std::vector<float>& values) {
  Bytes bytes;
  for (const float value : values) append(bytes, value);
  return bytes;
}

inline Bytes bf16_bytes(const std::vector<float>& values) {
  Bytes bytes;
  for (const float value : values) append(bytes, to_bfloat16(value).bits);
  return bytes;
}

/// `count` values that bf16 holds exactly, different for every `seed`.
inline std::vector<float> numbers(std::int64_t count, std::uint64_t seed) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    const double normal = random_normal(seed, 7, static_cast<std::uint64_t>(i));
    values.push_back(to_float(to_bfloat16(static_cast<float>(normal))));
  }
  return values;
}

/// A file with any header and any data.
inline Bytes raw_file(const Bytes& header, const Bytes& data) {
  Bytes bytes;
  append(bytes, static_cast<std::uint64_t>(header.size()));
  return bytes + header + data;
}

/// The tensors of one file.
class FileWriter {
 public:
  FileWriter& add(const std::string& name, const std::string& type,
                  const std::vector<std::int64_t>& shape, const Bytes& bytes) {
    const std::size_t begin = data_.size();
    data_ += bytes;
    header_[name] = {{"dtype", type}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
    return *this;
  }
  FileWriter& add_f32(const std::string& name, const std::vector<std::int64_t>& shape,
                      const std::vector<float>& values) {
    return add(name, "F32", shape, f32_bytes(values));
  }
  FileWriter& add_bf16(const std::string& name, const std::vector<std::int64_t>& shape,
                       const std::vector<float>& values) {
    return add(name, "BF16", shape, bf16_bytes(values));
  }
  [[nodiscard]] Bytes bytes() const { return raw_file(header_.dump(), data_); }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, entry] : header_.items()) names.push_back(name);
    return names;
  }

 private:
  nlohmann::ordered_json header_ = nlohmann::ordered_json::object();
  Bytes data_;
};

/// A folder that goes with the test.
class Folder {
 public:
  [[nodiscard]] const std::string& path() const { return folder_.path(); }
  std::string write(const std::string& name, const Bytes& bytes) const {
    std::string path = folder_.path(name);
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  /// An index of files that hold the given tensors.
  void write_index(const std::map<std::string, std::vector<std::string>>& tensors) const {
    nlohmann::ordered_json map = nlohmann::ordered_json::object();
    for (const auto& [file, names] : tensors) {
      for (const std::string& name : names) map[name] = file;
    }
    write("model.safetensors.index.json",
          nlohmann::ordered_json({{"metadata", {{"total_size", 0}}}, {"weight_map", map}}).dump());
  }

 private:
  TemporaryFolder folder_;
};

}  // namespace moe::test
