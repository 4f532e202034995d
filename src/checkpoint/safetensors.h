// One safetensors file: eight bytes with the header's length, the header (JSON: name, type, shape and
// place of every tensor), then the data without gaps
// (https://github.com/huggingface/safetensors#format).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/mapped_file.h"
#include "checkpoint/stored_type.h"

namespace moe::checkpoint {

/// One tensor as a file holds it: dense, row-major, little-endian, not aligned to anything.
struct StoredTensor {
  std::string name;
  StoredType type = StoredType::kF32;
  std::vector<std::int64_t> shape = {};
  std::span<const std::byte> data = {};  ///< in the file's memory

  [[nodiscard]] std::int64_t elements() const;
  /// "BF16 [8,64]"
  [[nodiscard]] std::string describe() const;
};

class SafetensorsFile {
 public:
  /// Maps the file and reads its header; of the data no page is touched. `name` stands for it in
  /// messages. Throws Error(kIo) with one sentence for everything that breaks the format: a file or a
  /// header cut short, a header over 100 MB, JSON that is none, a key twice, an unknown type, a
  /// tensor outside of the data, over another one, of another size than its shape, or a gap.
  SafetensorsFile(std::string name, MappedFile file);
  /// The same for bytes that the caller keeps.
  SafetensorsFile(std::string name, std::span<const std::byte> bytes);

  [[nodiscard]] const std::string& name() const { return name_; }
  /// By name.
  [[nodiscard]] const std::map<std::string, StoredTensor, std::less<>>& tensors() const {
    return tensors_;
  }
  /// null when there is none.
  [[nodiscard]] const StoredTensor* find(std::string_view tensor) const;
  /// Copies a stretch of a tensor's data, as MappedFile::copy() does, or from the caller's bytes.
  void copy(std::span<const std::byte> range, std::byte* to) const;

 private:
  void read(std::span<const std::byte> bytes);

  std::string name_;
  MappedFile file_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
};

/// "[8,64]"
[[nodiscard]] std::string describe_shape(const std::vector<std::int64_t>& shape);

}  // namespace moe::checkpoint
