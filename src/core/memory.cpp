#include "core/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

#include "core/text.h"

namespace moe {
namespace {

std::atomic<std::uint64_t> buffers_constructed{0};

/// A "Name:   123 kB" line of a /proc file in bytes; 0 when absent.
std::uint64_t proc_kilobytes(const char* path, std::string_view name) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with(name) && line.size() > name.size() && line[name.size()] == ':') {
      return std::strtoull(line.c_str() + name.size() + 1, nullptr, 10) * 1024;
    }
  }
  return 0;
}

/// The number in a one-line file; `absent` when it cannot be read or says "max".
std::uint64_t file_number(const std::string& path, std::uint64_t absent) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return (file >> value) ? value : absent;
}

/// Room below one cgroup's memory limit; no limit reads as the largest number. Page cache that the
/// kernel can reclaim counts as room.
std::uint64_t cgroup_room(const std::string& limit_path, const std::string& usage_path,
                          const std::string& stat_path, std::string_view reclaimable_name) {
  constexpr std::uint64_t kNone = std::numeric_limits<std::uint64_t>::max();
  const std::uint64_t limit = file_number(limit_path, kNone);
  const std::uint64_t usage = file_number(usage_path, kNone);
  if (limit == kNone || usage == kNone) return kNone;
  std::uint64_t reclaimable = 0;
  std::ifstream stat(stat_path);
  std::string name;
  std::uint64_t value = 0;
  while (stat >> name >> value) {
    if (name == reclaimable_name) reclaimable = value;
  }
  const std::uint64_t held = usage - std::min(usage, reclaimable);
  return limit - std::min(limit, held);
}

}  // namespace

HostBuffer::HostBuffer(std::size_t bytes) {
  if (bytes == 0) return;
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  // Buffers of at least one huge page start on one: reserve more, unmap the ends.
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : page;
  const std::size_t wanted = round_up(bytes, page);
  const std::size_t reserved = wanted + (alignment - page);
  void* mapping =
      mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("the kernel refused {}: {}", format_bytes(bytes), std::strerror(errno)),
                bytes);
  }
  auto* const start = static_cast<std::byte*>(mapping);
  const auto address = reinterpret_cast<std::uintptr_t>(mapping);
  const std::size_t skipped = round_up(address, alignment) - address;
  const std::size_t behind = reserved - skipped - wanted;
  if (skipped > 0) munmap(start, skipped);
  if (behind > 0) munmap(start + skipped + wanted, behind);
  data_ = start + skipped;
  size_ = wanted;
  // Advice only: without transparent huge pages the buffer works, a page at a time.
  if (alignment == kHugePage) madvise(data_, size_, MADV_HUGEPAGE);
  buffers_constructed.fetch_add(1, std::memory_order_relaxed);
}

HostBuffer::HostBuffer(HostBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

HostBuffer::~HostBuffer() {
  if (data_ != nullptr) munmap(data_, size_);
}

void HostBuffer::drop_pages() {
  if (data_ != nullptr) madvise(data_, size_, MADV_DONTNEED);
}

std::uint64_t allocation_count() {
  return buffers_constructed.load(std::memory_order_relaxed);
}

std::uint64_t available_memory() {
  std::uint64_t room = proc_kilobytes("/proc/meminfo", "MemAvailable");
  if (room == 0) {
    room = static_cast<std::uint64_t>(sysconf(_SC_AVPHYS_PAGES)) *
           static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  }
  const std::string v2 = "/sys/fs/cgroup/";
  const std::string v1 = "/sys/fs/cgroup/memory/";
  room = std::min(room, cgroup_room(v2 + "memory.max", v2 + "memory.current", v2 + "memory.stat",
                                    "inactive_file"));
  return std::min(room, cgroup_room(v1 + "memory.limit_in_bytes", v1 + "memory.usage_in_bytes",
                                    v1 + "memory.stat", "total_inactive_file"));
}

std::uint64_t resident_bytes() {
  return proc_kilobytes("/proc/self/status", "VmRSS");
}

std::uint64_t peak_resident_bytes() {
  return proc_kilobytes("/proc/self/status", "VmHWM");
}

void reset_peak_resident() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5";  // 5: reset VmHWM (proc(5))
}

}  // namespace moe
