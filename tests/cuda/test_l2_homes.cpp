// Which partition of L2 memory is behind: from latencies, and on the device.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "cuda/device_test.h"
#include "cuda/l2_homes.h"
#include "cuda/l2_partitions.h"

namespace moe::cuda {
namespace {

constexpr int kPairs = 256;  // of a page

/// Of a page whose pieces are near by the parity of `mask`, with some scatter.
std::vector<int> differences(std::uint32_t mask, bool flipped) {
  std::vector<int> all;
  for (int pair = 0; pair < kPairs; ++pair) {
    const auto offset = static_cast<std::uint32_t>(pair) * 8192;
    const bool second = (std::popcount(offset & mask) % 2 != 0) != flipped;
    all.push_back((second ? -1 : 1) * (200 + pair * 37 % 60));
  }
  return all;
}

TEST(L2Homes, HashIsFoundByLatencies) {
  for (const std::uint32_t mask : {0xab000U, 0xb3000U, 0x3000U, 0x1bb000U}) {
    for (const bool flipped : {false, true}) {
      EXPECT_EQ(find_l2_hash(differences(mask, flipped).data()), mask) << std::hex << mask;
    }
  }
}

TEST(L2Homes, HashIsNotKnownWherePiecesLieOtherwise) {
  EXPECT_EQ(find_l2_hash(differences(0x81000, false).data()), 0U) << "s, o, s, o: no bit 13";
  EXPECT_EQ(find_l2_hash(differences(0xaf000, false).data()), 0U) << "bit 14";
  std::vector<int> all = differences(0xab000, false);
  ASSERT_NE(find_l2_hash(all.data()), 0U);
  for (const int spoiled : {0, 64, 77}) {
    std::vector<int> spoilt = all;
    spoilt[static_cast<std::size_t>(spoiled)] /= 8;
    EXPECT_EQ(find_l2_hash(spoilt.data()), 0U) << "pair " << spoiled << " is as near to both";
    spoilt[static_cast<std::size_t>(spoiled)] = -all[static_cast<std::size_t>(spoiled)];
    EXPECT_EQ(find_l2_hash(spoilt.data()), 0U) << "pair " << spoiled << " is the other way round";
  }
}

/// Of pages whose bits are those of `bits`: the second piece is farther from the first partition, a difference above 0,
/// where the first one is behind it.
std::vector<int> differences_of_pages(std::uint64_t bits, std::uint64_t bytes, std::uint32_t hash) {
  std::vector<int> all;
  for (std::uint64_t page = 0; page * L2Homes::kPageBytes < bytes; ++page) {
    for (std::uint64_t asked = 0; asked < kPairsAsked; ++asked) {
      const auto offset = static_cast<std::uint32_t>(
          asked_pair(asked, std::min(L2Homes::kPageBytes, bytes - page * L2Homes::kPageBytes)));
      const bool second = ((bits >> page & 1) != 0) != (std::popcount(offset & hash) % 2 != 0);
      all.push_back(second ? -150 : 150);
    }
  }
  return all;
}

TEST(L2Homes, PagesVote) {
  constexpr std::uint32_t kHash = 0xab000;
  constexpr std::uint64_t kBits = 0b1'1010'0110'0000'0000'1111'0000'1100'1010'0101;
  constexpr std::uint64_t kBytes = 36 * L2Homes::kPageBytes + 3 * L2Homes::kUnitBytes;
  const std::vector<std::uint32_t> want = {static_cast<std::uint32_t>(kBits),
                                           static_cast<std::uint32_t>(kBits >> 32), 0, 0};
  std::vector<int> measured = differences_of_pages(kBits, kBytes, kHash);
  ASSERT_EQ(measured.size(), 37U * kPairsAsked);
  EXPECT_EQ(find_l2_pages(measured, kBytes, kHash), want);
  measured[5 * kPairsAsked + 2] *= -1;  // one of four
  measured[6 * kPairsAsked] = 10;
  EXPECT_EQ(find_l2_pages(measured, kBytes, kHash), want);
  for (const int page : {5, 9}) {  // two of 37 pages are more than one in twenty
    for (int asked = 0; asked < kPairsAsked; ++asked) {
      measured[static_cast<std::size_t>(page * kPairsAsked + asked)] = 20;
    }
  }
  EXPECT_TRUE(find_l2_pages(measured, kBytes, kHash).empty());
}

class CudaL2Homes : public CudaTest {};

TEST_F(CudaL2Homes, AreMeasuredPageByPage) {
  const DeviceFacts& facts = device().facts();
  if (facts.major != 9) GTEST_SKIP() << "not known of " << facts.name;
  // More pages than a word has bits, and a part of one.
  constexpr std::uint64_t kBytes = 70 * L2Homes::kPageBytes + 5 * L2Homes::kUnitBytes;
  std::vector<std::uint32_t> content(kBytes / sizeof(std::uint32_t));
  for (std::size_t i = 0; i < content.size(); ++i) {
    content[i] = static_cast<std::uint32_t>(i * 2654435761U);
  }
  const DeviceBuffer memory(kBytes);
  device().copy_from_host(memory.data(), content.data(), kBytes);
  const std::size_t words = l2_page_words(kBytes);
  ASSERT_EQ(words, 5U);
  std::vector<std::uint32_t> found[2];
  for (std::vector<std::uint32_t>& pages : found) {
    const DeviceArray<std::uint32_t> table(device(), static_cast<std::int64_t>(words));
    const L2Homes homes = find_l2_homes(facts, memory.data(), kBytes, table.data(), stream());
    ASSERT_TRUE(homes.known());
    EXPECT_EQ(homes.pages, table.data());
    EXPECT_EQ(homes.mask, 0b10101U) << "address bits 15, 17 and 19";
    EXPECT_TRUE(table.intact());
    pages = table.download();
  }
  EXPECT_EQ(found[0], found[1]) << "measured twice";
  int ones = 0;
  for (const std::uint32_t word : found[0]) ones += std::popcount(word);
  EXPECT_GT(ones, 10) << "of 71 pages";
  EXPECT_LT(ones, 61);
  std::vector<std::uint32_t> after(content.size());
  device().copy_to_host(after.data(), memory.data(), kBytes);
  EXPECT_TRUE(after == content);

  const DeviceArray<std::uint32_t> table(device(), static_cast<std::int64_t>(words));
  EXPECT_FALSE(find_l2_homes(facts, memory.as<std::byte>() + 4096, L2Homes::kPageBytes,
                             table.data(), stream())
                   .known())
      << "begins on no page";
}

}  // namespace
}  // namespace moe::cuda
