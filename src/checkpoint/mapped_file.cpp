#include "checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/check.h"

namespace moe::checkpoint {
namespace {

/// The pages that lie in `range`: whole ones, or also those that it only touches.
std::span<const std::byte> pages_of(std::span<const std::byte> range, bool whole) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t before = reinterpret_cast<std::uintptr_t>(range.data()) % page;
  const std::size_t after = (page - (before + range.size()) % page) % page;
  if (!whole) return {range.data() - before, before + range.size() + after};
  const std::size_t skipped = (page - before) % page;
  const std::size_t cut = (page - after) % page;
  if (skipped + cut >= range.size()) return {};
  return range.subspan(skipped, range.size() - skipped - cut);
}

void advise(std::span<const std::byte> pages, int advice) {
  if (pages.empty()) return;
  // Advice: where the kernel does not know it, the pages come and go by themselves.
  (void)madvise(const_cast<std::byte*>(pages.data()), pages.size(), advice);
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  MappedFile file;  // closes and unmaps on every way out but the last
  file.descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file.descriptor_ < 0) fail(ErrorCode::kIo, "cannot read {}: {}", path, std::strerror(errno));
  struct stat status {};
  if (fstat(file.descriptor_, &status) != 0) {
    fail(ErrorCode::kIo, "cannot read {}: {}", path, std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) fail(ErrorCode::kIo, "{} is not a regular file", path);
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size > 0) {  // of an empty file nothing can be mapped, and nothing needs to be
    void* data = mmap(nullptr, size, PROT_READ, MAP_SHARED, file.descriptor_, 0);
    if (data == MAP_FAILED) {
      fail(ErrorCode::kIo, "cannot map {} of {} bytes: {}", path, size, std::strerror(errno));
    }
    file.data_ = static_cast<const std::byte*>(data);
    file.size_ = size;
  }
  *this = std::move(file);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
  if (descriptor_ >= 0) close(descriptor_);
}

void MappedFile::copy(std::span<const std::byte> range, std::byte* to,
                      std::string_view name) const {
  std::size_t done = 0;
  while (done < range.size()) {
    const auto offset = static_cast<off_t>(range.data() - data_) + static_cast<off_t>(done);
    const ssize_t got = pread(descriptor_, to + done, range.size() - done, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(ErrorCode::kIo, "cannot read {}: {}", name, std::strerror(errno));
    if (got == 0) {
      fail(ErrorCode::kIo, "{} had {} bytes when it was opened and now ends at {}", name, size_,
           offset);
    }
    done += static_cast<std::size_t>(got);
  }
}

void bring_in(std::span<const std::byte> range) {
#ifdef MADV_POPULATE_READ
  advise(pages_of(range, false), MADV_POPULATE_READ);
#else
  advise(pages_of(range, false), MADV_WILLNEED);
#endif
}

void let_go(std::span<const std::byte> range) {
  advise(pages_of(range, true), MADV_DONTNEED);
}

}  // namespace moe::checkpoint
