// Which multiprocessors are near which half of L2: from latencies, and on the device.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "cuda/device_test.h"
#include "cuda/l2_partitions.h"

namespace moe::cuda {
namespace {

constexpr int kAddresses = 32;

/// Near is 210 cycles, far 360, an address and a multiprocessor add up to 30 each; multiprocessors of which `second`
/// says so are near the other addresses.
template <class Second>
std::vector<std::uint32_t> latencies(int multiprocessors, Second&& second) {
  std::vector<std::uint32_t> all;
  for (int sm = 0; sm < multiprocessors; ++sm) {
    for (int address = 0; address < kAddresses; ++address) {
      const bool far = (address * 7 % 5 < 2) != second(sm);
      all.push_back((far ? 360 : 210) + address * 11 % 31 + sm * 13 % 29);
    }
  }
  return all;
}

TEST(L2Partitions, AreFoundByLatencies) {
  const auto second = [](int sm) { return sm % 16 >= 8; };
  const auto measured = latencies(132, second);
  const L2Partitions found = find_l2_partitions(measured.data(), 132, kAddresses);
  ASSERT_TRUE(found.known);
  for (int sm = 0; sm < L2Partitions::kMostMultiprocessors; ++sm) {
    const bool is = (found.second[static_cast<std::size_t>(sm) / 32] >> sm % 32 & 1) != 0;
    EXPECT_EQ(is, sm < 132 && second(sm)) << sm;
  }
}

TEST(L2Partitions, AreNotKnownWhereLatenciesDoNotSay) {
  const auto expect_unknown = [](const std::vector<std::uint32_t>& measured, int multiprocessors) {
    EXPECT_EQ(find_l2_partitions(measured.data(), multiprocessors, kAddresses), L2Partitions());
  };
  expect_unknown(latencies(132, [](int) { return false; }), 132);          // one partition
  expect_unknown(latencies(132, [](int sm) { return sm < 20; }), 132);     // few in one of them
  expect_unknown(std::vector<std::uint32_t>(132 * kAddresses, 300), 132);  // all alike
  expect_unknown(std::vector<std::uint32_t>(300 * kAddresses, 300), 300);  // too many
  auto measured = latencies(132, [](int sm) { return sm % 2 != 0; });
  ASSERT_TRUE(find_l2_partitions(measured.data(), 132, kAddresses).known);
  auto missing = measured;
  missing[77 * kAddresses + 3] = 0;
  expect_unknown(missing, 132);
  for (int i = 0; i < kAddresses; ++i) {  // one multiprocessor that is near everything
    measured[static_cast<std::size_t>(50 * kAddresses + i)] = 210;
  }
  expect_unknown(measured, 132);
}

TEST(L2Partitions, AreNotKnownWhereOneMultiprocessorIsAsNearToBoth) {
  // The last one's latencies are the addresses' means: its pattern has no correlation at all (0 / 0).
  const std::vector<std::uint32_t> measured = {200, 400, 200, 400, 400, 200, 400, 200, 300, 300};
  EXPECT_EQ(find_l2_partitions(measured.data(), 5, 2), L2Partitions());
  EXPECT_TRUE(find_l2_partitions(measured.data(), 4, 2).known);
}

class CudaL2Partitions : public CudaTest {};

TEST_F(CudaL2Partitions, OfHopperAreTwoHalvesOfWholeClusters) {
  const DeviceFacts& facts = device().facts();
  if (facts.major != 9) GTEST_SKIP() << "not known of " << facts.name;
  const L2Partitions& found = l2_partitions(facts);
  ASSERT_TRUE(found.known);
  for (const std::uint32_t word : found.second) {
    // Multiprocessors 2i and 2i + 1 are neighbours and form the clusters of two.
    EXPECT_EQ(word & 0x55555555U, word >> 1 & 0x55555555U);
  }
  EXPECT_EQ(&l2_partitions(facts), &found) << "measured once";
}

}  // namespace
}  // namespace moe::cuda
