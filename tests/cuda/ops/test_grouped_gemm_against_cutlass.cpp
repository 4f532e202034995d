// Our grouped GEMM against CUTLASS's, element by element, at sizes at which loops on the host take
// minutes. Two independent kernels that agree are hardly both wrong.
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/ops/grouped_gemm_cutlass.h"
#include "cuda/ops/grouped_gemm_mma.h"

namespace moe::cuda {
namespace {

std::vector<BFloat16> normal(std::int64_t count, std::uint64_t stream) {
  std::vector<BFloat16> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = from_float<BFloat16>(static_cast<float>(random_normal(47, stream, i)));
  }
  return values;
}

class CudaGroupedGemmOracle : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    const std::string reason = cutlass_unsupported({1, 8, 8, 8, 8});
    if (!reason.empty()) GTEST_SKIP() << reason;
  }

  void compare(const std::vector<std::int32_t>& rows_per_group, std::int64_t n, std::int64_t k) {
    const auto groups = static_cast<std::int64_t>(rows_per_group.size());
    std::vector<std::int32_t> offsets(rows_per_group.size() + 1, 0);
    std::partial_sum(rows_per_group.begin(), rows_per_group.end(), offsets.begin() + 1);
    const std::int64_t rows = offsets.back();
    const DeviceArray<BFloat16> a(device(), normal(rows * k, 0));
    const DeviceArray<BFloat16> w(device(), normal(groups * n * k, 1));
    const DeviceArray<std::int32_t> given_offsets(device(), offsets);
    const DeviceArray<BFloat16> c(device(), rows * n);
    CutlassGemm gemm({groups, n, k, k, n}, device().facts());
    const CutlassGemm::Operands operands{a.data(), w.data(), c.data()};
    CutlassGemm unused({groups, n, k, k, n}, device().facts());
    describe_groups(given_offsets.data(), gemm, operands, unused, operands, stream());
    gemm.run(CutlassTile::kCooperative256x128, stream());
    device().synchronise();
    const std::vector<BFloat16> want = c.download();
    for (const GroupedGemmTile& tile : grouped_gemm_tiles(DType::kBF16)) {
      SCOPED_TRACE(testing::Message()
                   << "n=" << n << " k=" << k << " tile " << tile.rows << " x " << tile.columns);
      const DeviceArray<BFloat16> ours(device(), rows * n);
      grouped_gemm_mma(DType::kBF16,
                       {.a = a.data(),
                        .a_stride = k,
                        .w = w.data(),
                        .c = ours.data(),
                        .c_stride = n,
                        .expert_offsets = given_offsets.data(),
                        .experts = groups,
                        .rows = rows,
                        .n = n,
                        .k = k},
                       tile, stream());
      device().synchronise();
      expect_close(ours.download(), want, k);
    }
  }

 private:
  /// fp32 sums of k products of unit size in two orders, rounded to bf16: a sum that lies by a border
  /// between two numbers goes either way, all others are the same bits.
  static void expect_close(const std::vector<BFloat16>& got, const std::vector<BFloat16>& want,
                           std::int64_t k) {
    std::size_t different = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      const double is = to_float(got[i]);
      const double should = to_float(want[i]);
      if (is == should) continue;
      ++different;
      ASSERT_LE(std::abs(is - should),
                8 * 0x1p-24 * static_cast<double>(k) + 0x1p-7 * std::abs(should))
          << "element " << i << ": " << is << " and " << should;
    }
    EXPECT_LE(different, want.size() / 50) << "of " << want.size();
  }
};

TEST_F(CudaGroupedGemmOracle, LargeGroups) {
  compare({300, 1, 0, 700, 129, 64, 0, 511}, 1536, 2048);
}

TEST_F(CudaGroupedGemmOracle, ManyGroups) {
  std::vector<std::int32_t> rows(64);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = static_cast<std::int32_t>(random_bits(48, 0, i) % 90);
  }
  compare(rows, 768, 512);
}

TEST_F(CudaGroupedGemmOracle, LongReduction) {
  compare({5, 0, 200}, 328, 14336);
}

}  // namespace
}  // namespace moe::cuda
