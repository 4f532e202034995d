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

/// Closes on every way out of the constructor; a mapping does not need its descriptor.
class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : number_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (number_ < 0) fail(ErrorCode::kIo, "cannot read {}: {}", path, std::strerror(errno));
  }
  ~Descriptor() { close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int number() const { return number_; }

 private:
  int number_;
};

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
  const Descriptor file(path);
  struct stat status {};
  if (fstat(file.number(), &status) != 0) {
    fail(ErrorCode::kIo, "cannot read {}: {}", path, std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) fail(ErrorCode::kIo, "{} is not a regular file", path);
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ == 0) return;  // nothing can be mapped, and nothing needs to be
  void* data = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.number(), 0);
  if (data == MAP_FAILED) {
    fail(ErrorCode::kIo, "cannot map {} of {} bytes: {}", path, size_, std::strerror(errno));
  }
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
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
