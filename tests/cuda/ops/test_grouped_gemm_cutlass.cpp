// CUTLASS's grouped GEMM against fp64 loops on the host, over group sizes that a routing can bring.
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/ops/grouped_gemm_cutlass.h"
#include "moe/error.h"

namespace moe::cuda {
namespace {

std::vector<BFloat16> normal(std::int64_t count, std::uint64_t stream) {
  std::vector<BFloat16> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = from_float<BFloat16>(static_cast<float>(random_normal(41, stream, i)));
  }
  return values;
}

std::vector<std::int32_t> offsets_of(const std::vector<std::int32_t>& counts) {
  std::vector<std::int32_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

std::vector<std::int32_t> all_but(std::int64_t groups, std::int64_t group, std::int32_t rows) {
  std::vector<std::int32_t> counts(static_cast<std::size_t>(groups), 0);
  counts.at(static_cast<std::size_t>(group)) = rows;
  return counts;
}

class CudaCutlassGemm : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    const std::string reason = cutlass_unsupported({1, 8, 8, 8, 8});
    if (!reason.empty()) GTEST_SKIP() << reason;
  }

  /// A pair of products as a layer has them: first[r, n] = a[r, k] · w[e]^T, and a second whose A has
  /// rows `k + extra` apart and whose n and k are the other way round.
  struct Case {
    std::int64_t n;
    std::int64_t k;
    std::int64_t extra = 0;
  };
  struct Product {
    Product(CudaDevice& device, std::int64_t groups, std::int64_t rows, std::int64_t n,
            std::int64_t k, std::int64_t extra, std::uint64_t seed)
        : host_a(normal(rows * (k + extra), seed)),
          host_w(normal(groups * n * k, seed + 1)),
          a(device, host_a),
          w(device, host_w),
          c(device, rows * n),
          gemm({groups, n, k, k + extra, n}, device.facts()) {}
    [[nodiscard]] CutlassGemm::Operands operands() const { return {a.data(), w.data(), c.data()}; }

    /// Every row of the groups; nothing behind the last.
    void verify(const std::vector<std::int32_t>& counts) const {
      const auto& [groups, n, k, a_stride, c_stride] = gemm.spec();
      const std::vector<BFloat16> got = c.download();
      std::int64_t row = 0;
      for (std::size_t group = 0; group < counts.size(); ++group) {
        for (const std::int64_t end = row + counts[group]; row < end; ++row) {
          const BFloat16* const x = host_a.data() + row * a_stride;
          for (std::int64_t column = 0; column < n; ++column) {
            const BFloat16* const y =
                host_w.data() + (static_cast<std::int64_t>(group) * n + column) * k;
            double want = 0;
            for (std::int64_t i = 0; i < k; ++i) {
              want += static_cast<double>(to_float(x[i])) * static_cast<double>(to_float(y[i]));
            }
            const double is = to_float(got[static_cast<std::size_t>(row * c_stride + column)]);
            // fp32 sums of k products of unit size, and one rounding to bf16.
            ASSERT_LE(std::abs(is - want),
                      4 * 0x1p-24 * static_cast<double>(k) + 0x1p-8 * std::abs(want))
                << "group " << group << " row " << row << " column " << column;
          }
        }
      }
      for (auto i = static_cast<std::size_t>(row * n); i < got.size(); ++i) {
        ASSERT_TRUE(std::isnan(to_float(got[i]))) << "written behind the last group: " << i;
      }
      EXPECT_TRUE(c.intact());
    }

    std::vector<BFloat16> host_a;
    std::vector<BFloat16> host_w;
    DeviceArray<BFloat16> a;
    DeviceArray<BFloat16> w;
    DeviceArray<BFloat16> c;
    CutlassGemm gemm;
  };

  void check(const std::vector<std::int32_t>& counts, const Case& sizes) {
    const auto groups = static_cast<std::int64_t>(counts.size());
    const std::vector<std::int32_t> offsets = offsets_of(counts);
    const DeviceArray<std::int32_t> given(device(), offsets);
    for (const CutlassTile tile : kCutlassTiles) {
      SCOPED_TRACE(testing::Message()
                   << "tile " << name_of(tile) << " n=" << sizes.n << " k=" << sizes.k
                   << " groups=" << groups << " rows " << testing::PrintToString(counts));
      const std::int64_t rows = offsets.back() + 3;
      Product first(device(), groups, rows, sizes.n, sizes.k, 0, 0);
      Product second(device(), groups, rows, sizes.k, sizes.n, sizes.extra, 2);
      describe_groups(given.data(), first.gemm, first.operands(), second.gemm, second.operands(),
                      stream());
      first.gemm.run(tile, stream());
      second.gemm.run(tile, stream());
      device().synchronise();
      first.verify(counts);
      second.verify(counts);
    }
  }
};

TEST_F(CudaCutlassGemm, GroupSizesOnAndOffTheTile) {
  check({1}, {128, 64});
  check({64, 128, 192}, {256, 128});
  check({1, 63, 65, 127, 129, 191, 193, 2}, {328, 200, 200});
  check({700}, {64, 72});
}

TEST_F(CudaCutlassGemm, GroupsWithoutRows) {
  check({0, 0, 5, 130}, {128, 64});
  check({5, 130, 0, 0}, {128, 64});
  check({0, 40, 0, 0, 200, 0}, {128, 64});
  for (const std::int64_t group : {0, 1, 7}) check(all_but(8, group, 300), {64, 128});
  // More groups than a warp of the library's scheduler looks at, one to thirty-two at a time.
  for (const std::int64_t group : {0, 31, 32, 200, 255}) check(all_but(256, group, 3), {32, 16});
  check(all_but(1024, 1023, 2), {8, 8});
}

TEST_F(CudaCutlassGemm, NoRowsAtAll) {
  check(std::vector<std::int32_t>(5, 0), {64, 64});
}

TEST_F(CudaCutlassGemm, ManySmallGroups) {
  std::vector<std::int32_t> counts(257);
  for (std::size_t group = 0; group < counts.size(); ++group) {
    counts[group] = static_cast<std::int32_t>(random_bits(43, 0, group) % 4);
  }
  check(counts, {96, 64});
}

TEST_F(CudaCutlassGemm, SmallestSizes) {
  check({3, 0, 70}, {8, 8});
  check({3, 0, 70}, {8, 2048, 8});
}

/// The launches hold no size: recorded once, they follow the offsets.
TEST_F(CudaCutlassGemm, ReplayFollowsTheOffsets) {
  const std::vector<std::vector<std::int32_t>> routings = {{10, 20, 30, 40}, {0, 0, 0, 100},
                                                           {100, 0, 0, 0},   {1, 98, 1, 0},
                                                           {0, 0, 0, 0},     {10, 20, 30, 40}};
  const DeviceArray<std::int32_t> offsets(device(), offsets_of(routings[0]));
  Product first(device(), 4, 100, 192, 128, 0, 5);
  Product second(device(), 4, 100, 128, 192, 64, 7);
  cudaStream_t recording = nullptr;
  MOE_CUDA_CHECK(cudaStreamCreateWithFlags(&recording, cudaStreamNonBlocking));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  MOE_CUDA_CHECK(cudaStreamBeginCapture(recording, cudaStreamCaptureModeThreadLocal));
  describe_groups(offsets.data(), first.gemm, first.operands(), second.gemm, second.operands(),
                  recording);
  first.gemm.run(CutlassTile::kCooperative256x128, recording);
  second.gemm.run(CutlassTile::kPingpong128x192, recording);
  MOE_CUDA_CHECK(cudaStreamEndCapture(recording, &graph));
  MOE_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (const std::vector<std::int32_t>& counts : routings) {
    SCOPED_TRACE(testing::PrintToString(counts));
    const std::vector<std::int32_t> values = offsets_of(counts);
    device().copy_from_host(offsets.data(), values.data(), values.size() * sizeof(std::int32_t));
    for (const Product* product : {&first, &second}) {
      MOE_CUDA_CHECK(cudaMemset(product->c.data(), 0xff,
                                static_cast<std::size_t>(100 * product->gemm.spec().n) * 2));
    }
    MOE_CUDA_CHECK(cudaGraphLaunch(exec, recording));
    MOE_CUDA_CHECK(cudaStreamSynchronize(recording));
    first.verify(counts);
    second.verify(counts);
  }
  MOE_CUDA_CHECK(cudaGraphExecDestroy(exec));
  MOE_CUDA_CHECK(cudaGraphDestroy(graph));
  MOE_CUDA_CHECK(cudaStreamDestroy(recording));
}

/// Rows of A and C of group 1 lie behind 2^31 elements.
TEST_F(CudaCutlassGemm, RowsBeyond32Bits) {
  constexpr std::int64_t kStride = std::int64_t{1} << 20;
  constexpr std::int32_t kFirst = 2100;
  constexpr std::int64_t kRows = kFirst + 40;
  constexpr std::int64_t kN = 64;
  constexpr std::int64_t kK = 72;
  if (device().available_memory() < std::uint64_t{12} << 30) GTEST_SKIP() << "needs 12 GiB";
  const DeviceArray<BFloat16> dense_a(device(), normal(kRows * kK, 11));
  const DeviceArray<BFloat16> w(device(), normal(2 * kN * kK, 12));
  const DeviceArray<std::int32_t> offsets(device(), {0, kFirst, kRows});
  const DeviceBuffer a(static_cast<std::size_t>(kRows * kStride) * sizeof(BFloat16));
  const DeviceBuffer c(a.size());
  MOE_CUDA_CHECK(cudaMemset(a.data(), 0xff, a.size()));
  MOE_CUDA_CHECK(cudaMemcpy2D(a.data(), kStride * sizeof(BFloat16), dense_a.data(),
                              kK * sizeof(BFloat16), kK * sizeof(BFloat16), kRows,
                              cudaMemcpyDeviceToDevice));
  const DeviceArray<BFloat16> dense_c(device(), kRows * kN);
  CutlassGemm wide({2, kN, kK, kStride, kStride}, device().facts());
  CutlassGemm dense({2, kN, kK, kK, kN}, device().facts());
  describe_groups(offsets.data(), wide, {a.data(), w.data(), c.data()}, dense,
                  {dense_a.data(), w.data(), dense_c.data()}, stream());
  for (const CutlassTile tile : kCutlassTiles) {
    MOE_CUDA_CHECK(cudaMemsetAsync(c.data(), 0xff, c.size(), stream()));
    wide.run(tile, stream());
    dense.run(tile, stream());
    device().synchronise();
    const std::vector<BFloat16> want = dense_c.download();
    std::vector<BFloat16> row(kN);
    for (const std::int64_t r : {0, kFirst - 1, kFirst, kFirst + 39}) {
      device().copy_to_host(row.data(), c.as<BFloat16>() + r * kStride, kN * sizeof(BFloat16));
      for (std::int64_t column = 0; column < kN; ++column) {
        ASSERT_EQ(to_float(row[static_cast<std::size_t>(column)]),
                  to_float(want[static_cast<std::size_t>(r * kN + column)]))
            << "row " << r << " column " << column << " tile " << name_of(tile);
      }
    }
  }
}

/// The weights of the last group lie behind 2^31 elements; all others are NaN.
TEST_F(CudaCutlassGemm, WeightsBeyond32Bits) {
  constexpr std::int64_t kGroups = 34;
  constexpr std::int64_t kSide = 8192;
  constexpr std::int64_t kMatrix = kSide * kSide;
  constexpr std::int32_t kRows = 5;
  if (device().available_memory() < std::uint64_t{8} << 30) GTEST_SKIP() << "needs 8 GiB";
  const DeviceArray<BFloat16> a(device(), normal(kRows * kSide, 13));
  const DeviceBuffer w(static_cast<std::size_t>(kGroups * kMatrix) * sizeof(BFloat16));
  BFloat16* const last = w.as<BFloat16>() + (kGroups - 1) * kMatrix;
  MOE_CUDA_CHECK(cudaMemset(w.data(), 0xff, w.size()));
  const std::vector<BFloat16> one_row = normal(kSide, 14);
  for (std::int64_t row = 0; row < kSide; row += kSide / 2) {  // the rest stays NaN
    device().copy_from_host(last + row * kSide, one_row.data(), kSide * sizeof(BFloat16));
  }
  const DeviceArray<std::int32_t> offsets(device(),
                                          offsets_of(all_but(kGroups, kGroups - 1, kRows)));
  const DeviceArray<std::int32_t> alone(device(), {0, kRows});
  const DeviceArray<BFloat16> c(device(), kRows * kSide);
  const DeviceArray<BFloat16> c_alone(device(), kRows * kSide);
  CutlassGemm gemm({kGroups, kSide, kSide, kSide, kSide}, device().facts());
  CutlassGemm single({1, kSide, kSide, kSide, kSide}, device().facts());
  const CutlassGemm::Operands operands{a.data(), w.data(), c.data()};
  const CutlassGemm::Operands operands_alone{a.data(), last, c_alone.data()};
  CutlassGemm unused({kGroups, kSide, kSide, kSide, kSide}, device().facts());
  CutlassGemm unused_single({1, kSide, kSide, kSide, kSide}, device().facts());
  describe_groups(offsets.data(), gemm, operands, unused, operands, stream());
  describe_groups(alone.data(), single, operands_alone, unused_single, operands_alone, stream());
  for (const CutlassTile tile : kCutlassTiles) {
    MOE_CUDA_CHECK(cudaMemsetAsync(c.data(), 0xff, kRows * kSide * sizeof(BFloat16), stream()));
    gemm.run(tile, stream());
    single.run(tile, stream());
    device().synchronise();
    const std::vector<BFloat16> got = c.download();
    const std::vector<BFloat16> want = c_alone.download();
    for (std::size_t i = 0; i < want.size(); i += kSide / 2) {
      ASSERT_EQ(to_float(got[i]), to_float(want[i])) << "element " << i << " " << name_of(tile);
    }
    EXPECT_TRUE(std::isnan(to_float(got[1])));
  }
}

TEST(CutlassGemm, SaysWhatItCannotMultiply) {
  const std::string without = cutlass_unsupported({4, 64, 128, 128, 64});
  if (!without.empty()) GTEST_SKIP() << without;
  EXPECT_NE(cutlass_unsupported({4, 60, 128, 128, 64}).find("60"), std::string::npos);
  EXPECT_NE(cutlass_unsupported({4, 64, 129, 136, 64}).find("129"), std::string::npos);
  EXPECT_NE(cutlass_unsupported({4, 64, 128, 130, 64}).find("130"), std::string::npos);
  EXPECT_NE(cutlass_unsupported({4, 64, 128, 128, 68}).find("68"), std::string::npos);
}

}  // namespace
}  // namespace moe::cuda
