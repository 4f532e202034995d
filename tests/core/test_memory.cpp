#include "core/memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "core/text.h"

namespace moe {
namespace {

TEST(HostBuffer, IsZeroAlignedAndCounted) {
  const std::uint64_t before = allocation_count();
  const HostBuffer buffer(3U << 20);
  EXPECT_EQ(allocation_count(), before + 1);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % (2U << 20), 0U);
  for (std::size_t i = 0; i < buffer.size(); i += 4096) EXPECT_EQ(buffer.as<char>()[i], 0);
}

TEST(HostBuffer, MovesOwnership) {
  HostBuffer first(4096);
  void* data = first.data();
  HostBuffer second = std::move(first);
  EXPECT_EQ(second.data(), data);
  second = HostBuffer(8192);
  EXPECT_NE(second.data(), nullptr);
  EXPECT_EQ(second.size(), 8192U);
}

TEST(HostBuffer, RefusalNamesTheBytes) {
  try {
    const HostBuffer impossible(std::size_t{1} << 60);
    FAIL() << "the kernel granted 2^60 bytes";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_EQ(error.bytes_needed(), std::uint64_t{1} << 60);
  }
}

TEST(HostBuffer, DroppedPagesLeaveMemory) {
  HostBuffer buffer(64U << 20);
  std::memset(buffer.data(), 1, buffer.size());
  const std::uint64_t full = resident_bytes();
  buffer.drop_pages();
  EXPECT_LT(resident_bytes() + (60U << 20), full);
  EXPECT_EQ(buffer.as<char>()[12345], 0);
}

TEST(Resident, PeakSeesWhatWasFreed) {
  reset_peak_resident();
  const std::uint64_t before = resident_bytes();
  {
    const HostBuffer buffer(64U << 20);
    std::memset(buffer.data(), 1, buffer.size());
  }
  EXPECT_GE(peak_resident_bytes(), before + (60U << 20));
  reset_peak_resident();
  EXPECT_LT(peak_resident_bytes(), before + (32U << 20));
}

TEST(Arena, PlanAndArenaAgree) {
  ArenaPlan plan;
  plan.take<float>(3);
  plan.take<char>(65);
  EXPECT_EQ(plan.bytes(), 64U + 128U);

  const HostBuffer memory(plan.bytes());
  Arena arena(memory.data(), plan.bytes());
  auto* floats = arena.take<float>(3);
  auto* chars = arena.take<char>(65);
  EXPECT_EQ(reinterpret_cast<std::byte*>(chars) - reinterpret_cast<std::byte*>(floats), 64);
  EXPECT_EQ(arena.used(), arena.capacity());
  EXPECT_THROW(arena.take<char>(1), Error);
}

TEST(AvailableMemory, IsPlausible) {
  EXPECT_GT(available_memory(), 64U << 20);
  EXPECT_LT(available_memory(), std::uint64_t{1} << 50);
}

TEST(Text, FormatsBytes) {
  EXPECT_EQ(format_bytes(96), "96 B");
  EXPECT_EQ(format_bytes(std::uint64_t{4} << 30), "4.00 GiB");
}

}  // namespace
}  // namespace moe
