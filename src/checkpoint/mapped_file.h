// A file mapped into memory for reading, where pages come in when they are touched, and open for copying
// stretches of it without mapping them.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace moe::checkpoint {

/// Movable, not copyable. The content must not shrink while it is mapped: reading bytes() past the new end
/// ends the process with SIGBUS, as for every mapping.
class MappedFile {
 public:
  MappedFile() = default;
  /// Throws Error(kIo) when `path` cannot be read or is no regular file.
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }

  /// Copies `range`, which lies in bytes(), to `to` by pread(2): no page of the file gets mapped. Safe
  /// from several threads. Throws Error(kIo) with `name` when the file cannot be read or has become
  /// shorter.
  void copy(std::span<const std::byte> range, std::byte* to, std::string_view name) const;

 private:
  int descriptor_ = -1;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Maps the pages of `range`, which lies in a mapping, with one call instead of a fault per page.
void bring_in(std::span<const std::byte> range);
/// Takes the whole pages in `range` out of this process's resident memory; the page cache keeps
/// them, and touching them maps them again.
void let_go(std::span<const std::byte> range);

}  // namespace moe::checkpoint
