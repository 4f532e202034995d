// Host memory: page-aligned owning buffers, the arena that forward carves, and what the machine
// has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/check.h"

namespace moe {

/// Alignment of every arena block: one cache line, one AVX-512 register.
inline constexpr std::size_t kArenaAlignment = 64;

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Zeroed memory straight from the kernel (mmap, transparent huge pages asked for), returned to it
/// on destruction. Not resident until touched. Throws Error(kOutOfMemory) when the kernel refuses.
/// Every construction is counted in allocation_count(), so that a forward which allocates is seen.
class HostBuffer {
 public:
  HostBuffer() = default;
  explicit HostBuffer(std::size_t bytes);
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  ~HostBuffer();

  /// Bytes that a buffer of `bytes` occupies: whole pages.
  static constexpr std::size_t footprint(std::size_t bytes) { return round_up(bytes, 4096); }

  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  template <class Element>
  [[nodiscard]] Element* as() const {
    return static_cast<Element*>(data_);
  }
  /// Gives the pages back; the content reads as zero afterwards.
  void drop_pages();

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// HostBuffers constructed by this process so far.
[[nodiscard]] std::uint64_t allocation_count();

/// Bump allocator over memory it does not own. reset() at the start of each forward; take() never
/// allocates. Sizes come from the same function that answers memory().workspace, so running out is
/// a bug and throws kInternal.
class Arena {
 public:
  Arena() = default;
  Arena(void* base, std::size_t capacity)
      : base_(static_cast<std::byte*>(base)), capacity_(capacity) {}

  void reset() { used_ = 0; }
  [[nodiscard]] std::size_t used() const { return used_; }
  [[nodiscard]] std::size_t capacity() const { return capacity_; }

  template <class Element>
  Element* take(std::int64_t count) {
    const std::size_t bytes =
        round_up(static_cast<std::size_t>(count) * sizeof(Element), kArenaAlignment);
    MOE_INTERNAL_CHECK(used_ + bytes <= capacity_,
                       "arena of {} bytes is full: {} used, {} asked for", capacity_, used_, bytes);
    auto* block = reinterpret_cast<Element*>(base_ + used_);
    used_ += bytes;
    return block;
  }

 private:
  std::byte* base_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
};

/// Adds up what a sequence of Arena::take calls will use. Write the level's layout once as a
/// template over Arena and ArenaPlan.
class ArenaPlan {
 public:
  template <class Element>
  Element* take(std::int64_t count) {
    bytes_ += round_up(static_cast<std::size_t>(count) * sizeof(Element), kArenaAlignment);
    return nullptr;
  }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

/// Bytes this process can still take: the smaller of MemAvailable and the cgroup's room.
[[nodiscard]] std::uint64_t available_memory();
/// Resident bytes now, and the most since reset_peak_resident(); 0 where /proc does not tell.
[[nodiscard]] std::uint64_t resident_bytes();
[[nodiscard]] std::uint64_t peak_resident_bytes();
void reset_peak_resident();

}  // namespace moe
