// The counting sort, the copies and the weighted sum against loops on the host.
#include "cuda/ops/permute.h"

#include <cmath>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"

namespace moe::cuda {
namespace {

struct Sorted {
  std::vector<std::int32_t> offsets;
  std::vector<std::int32_t> dst;
};

Sorted sort_on_host(const std::vector<std::int32_t>& idx, std::int64_t experts) {
  Sorted out;
  out.offsets.assign(static_cast<std::size_t>(experts + 1), 0);
  for (const std::int32_t e : idx) ++out.offsets[static_cast<std::size_t>(e) + 1];
  for (std::size_t e = 0; e < static_cast<std::size_t>(experts); ++e) {
    out.offsets[e + 1] += out.offsets[e];
  }
  std::vector<std::int32_t> next = out.offsets;
  for (const std::int32_t e : idx) out.dst.push_back(next[static_cast<std::size_t>(e)]++);
  return out;
}

class CudaPermute : public CudaTest {
 protected:
  void check_sort(const std::vector<std::int32_t>& idx, std::int64_t experts) {
    const auto routed = static_cast<std::int64_t>(idx.size());
    SCOPED_TRACE(testing::Message() << routed << " rows, " << experts << " experts");
    const DeviceArray<std::int32_t> given(device(), idx);
    const DeviceArray<std::int32_t> offsets(device(), experts + 1);
    const DeviceArray<std::int32_t> dst(device(), routed);
    const DeviceArray<std::int32_t> scratch(device(),
                                            permutation_scratch(routed, experts, device().facts()));
    const Sorted want = sort_on_host(idx, experts);
    for (int repeat = 0; repeat < 2; ++repeat) {  // the second call finds the first one's leftovers
      build_permutation(given.data(), routed, experts, {offsets.data(), dst.data(), scratch.data()},
                        device().facts(), stream());
      ASSERT_EQ(offsets.download(), want.offsets);
      ASSERT_EQ(dst.download(), want.dst);
    }
    EXPECT_TRUE(given.intact() && offsets.intact() && dst.intact() && scratch.intact());
  }
};

std::vector<std::int32_t> random_experts(std::int64_t routed, std::int64_t experts) {
  std::vector<std::int32_t> idx(static_cast<std::size_t>(routed));
  for (std::size_t i = 0; i < idx.size(); ++i) {
    idx[i] = static_cast<std::int32_t>(random_bits(7, static_cast<std::uint64_t>(experts), i) %
                                       static_cast<std::uint64_t>(experts));
  }
  return idx;
}

TEST_F(CudaPermute, SortsAnyNumberOfRowsStably) {
  // Around one warp, one block (2048 rows), a grid, and more rows than two steps of every warp.
  for (const std::int64_t routed :
       {1, 2, 31, 32, 33, 1000, 2047, 2048, 2049, 4097, 131072, 600001}) {
    for (const std::int64_t experts : {1, 3, 8, 128, 256}) {
      check_sort(random_experts(routed, experts), experts);
    }
  }
  check_sort(random_experts(5000, 1000), 1000);
  check_sort(random_experts(50000, 1024), 1024);
}

TEST_F(CudaPermute, SortsSkewedRows) {
  for (const std::int64_t routed : {1, 64, 2048, 40000}) {
    for (const std::int32_t only : {0, 5, 255}) {  // first, some and last expert take everything
      check_sort(std::vector<std::int32_t>(static_cast<std::size_t>(routed), only), 256);
    }
    std::vector<std::int32_t> ends(static_cast<std::size_t>(routed));
    for (std::size_t i = 0; i < ends.size(); ++i) ends[i] = i % 3 == 0 ? 255 : 0;
    check_sort(ends, 256);
  }
}

TEST_F(CudaPermute, MovesRowsOfAnyWidth) {
  for (const std::int64_t top_k : {1, 2, 5, 8, 33}) {
    for (const std::int64_t tokens : {1, 7, 300}) {
      for (const std::int64_t width : {1, 7, 8, 9, 64, 1000, 1024, 7168}) {  // of 2-byte elements
        for (const std::int64_t misaligned : {0, 3}) {
          const std::vector<std::int32_t> dst =
              sort_on_host(random_experts(tokens * top_k, 16), 16).dst;
          std::vector<std::uint16_t> x(static_cast<std::size_t>(tokens * width));
          for (std::size_t i = 0; i < x.size(); ++i) {
            x[i] = static_cast<std::uint16_t>(random_bits(8, 0, i));
          }
          std::vector<std::uint16_t> want(x.size() * static_cast<std::size_t>(top_k));
          for (std::size_t row = 0; row < dst.size(); ++row) {
            const auto from = static_cast<std::ptrdiff_t>(row) / top_k * width;
            std::copy_n(x.begin() + from, width, want.begin() + dst[row] * width);
          }
          const DeviceArray<std::uint16_t> given(device(), x, misaligned);
          const DeviceArray<std::int32_t> rows(device(), dst);
          const DeviceArray<std::uint16_t> out(device(), tokens * top_k * width);
          permute_rows(given.data(), rows.data(), tokens, top_k, width * 2, out.data(), stream());
          ASSERT_EQ(out.download(), want) << "T=" << tokens << " K=" << top_k << " H=" << width;
          ASSERT_TRUE(out.intact());
        }
      }
    }
  }
}

template <class Element>
void check_unpermute(CudaDevice& device, std::int64_t tokens, std::int64_t top_k,
                     std::int64_t hidden, std::int64_t misaligned, bool identity) {
  SCOPED_TRACE(testing::Message() << "T=" << tokens << " K=" << top_k << " H=" << hidden);
  std::vector<Element> rows(static_cast<std::size_t>(tokens * top_k * hidden));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = from_float<Element>(static_cast<float>(random_normal(9, 0, i)));
  }
  std::vector<float> weights(static_cast<std::size_t>(tokens * top_k));
  for (std::size_t i = 0; i < weights.size(); ++i) {
    weights[i] = static_cast<float>(random_uniform(9, 1, i));
  }
  const std::vector<std::int32_t> dst = sort_on_host(random_experts(tokens * top_k, 16), 16).dst;
  const DeviceArray<Element> given(device, rows, misaligned);
  const DeviceArray<float> given_weights(device, weights);
  const DeviceArray<std::int32_t> given_dst(device, dst);
  const DeviceArray<Element> out(device, tokens * hidden);
  unpermute_rows(sizeof(Element) == 4 ? DType::kF32 : DType::kBF16, given.data(),
                 identity ? nullptr : given_dst.data(), given_weights.data(), tokens, top_k, hidden,
                 out.data(), device.stream());
  const std::vector<Element> got = out.download();
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = 0; h < hidden; ++h) {
      float sum = 0;  // fp32 in slot order, as promised: the same bits
      for (std::int64_t k = 0; k < top_k; ++k) {
        const auto slot = static_cast<std::size_t>(t * top_k + k);
        const std::int64_t row = identity ? static_cast<std::int64_t>(slot) : dst[slot];
        sum = std::fma(weights[slot], to_float(rows[static_cast<std::size_t>(row * hidden + h)]),
                       sum);
      }
      ASSERT_EQ(got[static_cast<std::size_t>(t * hidden + h)], from_float<Element>(sum))
          << "t=" << t << " h=" << h;
    }
  }
  EXPECT_TRUE(out.intact());
}

TEST_F(CudaPermute, SumsSlotsInOrder) {
  for (const std::int64_t top_k : {1, 2, 3, 4, 5, 8, 9, 22}) {
    for (const std::int64_t hidden : {1, 7, 8, 33, 512, 1000, 2880}) {
      for (const std::int64_t tokens : {1, 50}) {
        check_unpermute<BFloat16>(device(), tokens, top_k, hidden, 0, false);
        check_unpermute<float>(device(), tokens, top_k, hidden, 0, false);
      }
      check_unpermute<BFloat16>(device(), 9, top_k, hidden, 1, true);
    }
  }
  check_unpermute<BFloat16>(device(), 5000, 2, 64, 0, false);  // one warp a token
  check_unpermute<float>(device(), 5000, 8, 1032, 0, false);
}

}  // namespace
}  // namespace moe::cuda
