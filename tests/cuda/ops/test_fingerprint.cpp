// The fingerprint on the device is that of the host, and no byte can change without it.
#include "bench/series.h"
#include "core/instrument.h"
#include "cuda/device_test.h"
#include "cuda/ops/fingerprint.h"

namespace moe::cuda {
namespace {

class CudaFingerprint : public CudaTest {
 protected:
  std::uint64_t on_device(const void* data, std::size_t bytes) {
    DeviceArray<std::uint64_t> sum(device(), 1);
    fingerprint(data, bytes, sum.data(), stream());
    EXPECT_TRUE(sum.intact());
    return sum.download()[0];
  }
  static std::uint64_t on_host(const std::vector<std::uint8_t>& bytes) {
    // A tensor of as many bytes: pairs of them are bf16 values.
    Tensor tensor(DType::kBF16, {static_cast<std::int64_t>(bytes.size() / 2)});
    std::memcpy(tensor.view().data, bytes.data(), bytes.size());
    return moe::fingerprint(tensor.view());
  }
};

std::vector<std::uint8_t> some_bytes(std::int64_t count) {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::uint8_t>(i * 37 + (i >> 8));
  }
  return bytes;
}

TEST_F(CudaFingerprint, IsThatOfTheHost) {
  for (const std::int64_t count : {0, 2, 6, 8, 10, 254, 4096, 70002, 5000000}) {
    const std::vector<std::uint8_t> bytes = some_bytes(count);
    for (const std::int64_t offset : {0, 1, 4}) {
      const DeviceArray<std::uint8_t> data(device(), bytes, offset);
      EXPECT_EQ(on_device(data.data(), bytes.size()), on_host(bytes))
          << count << " bytes, offset " << offset;
    }
  }
}

TEST_F(CudaFingerprint, ChangesWithAnyBit) {
  std::vector<std::uint8_t> bytes = some_bytes(203);
  DeviceArray<std::uint8_t> data(device(), bytes);
  const std::uint64_t before = on_device(data.data(), bytes.size());
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    for (const int bit : {0, 7}) {
      bytes[at] ^= static_cast<std::uint8_t>(1 << bit);
      device().copy_from_host(data.data(), bytes.data(), bytes.size());
      EXPECT_NE(on_device(data.data(), bytes.size()), before) << "byte " << at << " bit " << bit;
      bytes[at] ^= static_cast<std::uint8_t>(1 << bit);
    }
  }
  device().copy_from_host(data.data(), bytes.data(), bytes.size());
  EXPECT_EQ(on_device(data.data(), bytes.size()), before);
}

TEST_F(CudaFingerprint, ChangesWhenValuesTradePlacesOrTheEndMoves) {
  std::vector<std::uint8_t> bytes = some_bytes(4096);
  DeviceArray<std::uint8_t> data(device(), bytes);
  const std::uint64_t before = on_device(data.data(), bytes.size());
  EXPECT_NE(on_device(data.data(), bytes.size() - 1), before);
  EXPECT_NE(on_device(data.data() + 8, bytes.size() - 8), before);
  for (const std::size_t distance : {8, 64, 2048}) {
    std::vector<std::uint8_t> traded = bytes;
    std::swap_ranges(traded.begin(), traded.begin() + 8,
                     traded.begin() + static_cast<std::ptrdiff_t>(distance));
    device().copy_from_host(data.data(), traded.data(), traded.size());
    EXPECT_NE(on_device(data.data(), traded.size()), before) << "words " << distance << " apart";
  }
  std::vector<std::uint8_t> zeros(64);
  device().copy_from_host(data.data(), zeros.data(), zeros.size());
  EXPECT_NE(on_device(data.data(), 56), on_device(data.data(), 64)) << "zeros at the end count";
}

}  // namespace
}  // namespace moe::cuda
