// The grouped product against fp64 loops on the host.
#include "cuda/ops/grouped_gemm_mma.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"

namespace moe::cuda {
namespace {

template <class Element>
constexpr DType kTypeOf = sizeof(Element) == 4 ? DType::kF32 : DType::kBF16;

template <class Element>
std::vector<Element> normal(std::int64_t count, std::uint64_t stream) {
  std::vector<Element> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = from_float<Element>(static_cast<float>(random_normal(23, stream, i)));
  }
  return values;
}

template <class Element>
double dot(const Element* a, const Element* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    sum += static_cast<double>(to_float(a[i])) * static_cast<double>(to_float(b[i]));
  }
  return sum;
}

std::vector<std::int32_t> offsets_of(const std::vector<std::int32_t>& rows_per_expert) {
  std::vector<std::int32_t> offsets(1, 0);
  for (const std::int32_t rows : rows_per_expert) offsets.push_back(offsets.back() + rows);
  return offsets;
}

struct Sizes {
  std::int64_t n, k;
  std::int64_t extra_a = 0, extra_c = 0;  // elements between the rows of a and of c
  std::int64_t misaligned = 0;            // elements from a 256-byte boundary
};

class CudaGroupedGemm : public CudaTest {
 protected:
  template <class Element>
  void check(const std::vector<std::int32_t>& rows_per_expert, const Sizes& sizes) {
    const auto [n, k, extra_a, extra_c, misaligned] = sizes;
    const std::vector<std::int32_t> offsets = offsets_of(rows_per_expert);
    const auto experts = static_cast<std::int64_t>(rows_per_expert.size());
    const std::int64_t rows = offsets.back();
    const std::vector<Element> a = normal<Element>(rows * (k + extra_a), 0);
    const std::vector<Element> w = normal<Element>(experts * n * k, 1);
    const DeviceArray<Element> given_a(device(), a, misaligned);
    const DeviceArray<Element> given_w(device(), w, misaligned);
    const DeviceArray<std::int32_t> given_offsets(device(), offsets);
    for (const GroupedGemmTile& tile : grouped_gemm_tiles(kTypeOf<Element>)) {
      SCOPED_TRACE(testing::Message()
                   << rows << " rows of " << experts << " experts, n=" << n << " k=" << k << " +"
                   << extra_a << " +" << extra_c << " offset " << misaligned << ", tile "
                   << tile.rows << " x " << tile.columns);
      const std::int64_t stride = n + extra_c;
      const std::vector<Element> untouched(static_cast<std::size_t>(rows * stride),
                                           from_float<Element>(-77));
      const DeviceArray<Element> c(device(), untouched, misaligned);
      grouped_gemm_mma(kTypeOf<Element>,
                       {.a = given_a.data(),
                        .a_stride = k + extra_a,
                        .w = given_w.data(),
                        .c = c.data(),
                        .c_stride = stride,
                        .expert_offsets = given_offsets.data(),
                        .experts = experts,
                        .rows = rows,
                        .n = n,
                        .k = k},
                       tile, stream());
      const std::vector<Element> got = c.download();
      for (std::int64_t e = 0; e < experts; ++e) {
        for (std::int64_t r = offsets[static_cast<std::size_t>(e)];
             r < offsets[static_cast<std::size_t>(e) + 1]; ++r) {
          for (std::int64_t i = 0; i < stride; ++i) {
            const float value = to_float(got[static_cast<std::size_t>(r * stride + i)]);
            if (i >= n) {
              ASSERT_EQ(value, -77) << "between the rows, row " << r;
              continue;
            }
            const double want = dot(a.data() + r * (k + extra_a), w.data() + (e * n + i) * k, k);
            const double allowed = 4 * 0x1p-24 * static_cast<double>(k) +
                                   (sizeof(Element) == 4 ? 0 : 0x1p-8 * std::abs(want));
            ASSERT_LE(std::abs(value - want), allowed)
                << "expert " << e << " row " << r << " column " << i;
          }
        }
      }
      EXPECT_TRUE(c.intact() && given_a.intact() && given_w.intact());
    }
  }
  template <class Element>
  void check_all(const std::vector<std::int32_t>& rows_per_expert) {
    check<Element>(rows_per_expert, {64, 64});
    check<Element>(rows_per_expert, {136, 200, 8, 16});  // off every tile, still 16-byte multiples
    check<Element>(rows_per_expert, {128, 72, 0, 0, 1});
    check<Element>(rows_per_expert, {33, 47});
    check<Element>(rows_per_expert, {1, 1, 1, 1});
    check<Element>(rows_per_expert, {65, 129, 3, 2, 3});
  }
};

TEST_F(CudaGroupedGemm, AnySplitOfTheRows) {
  const std::vector<std::vector<std::int32_t>> splits = {{1},
                                                         {0, 0, 1, 0},
                                                         {5, 0, 17, 1, 0, 0, 16, 3},
                                                         {127, 128, 129},
                                                         {0, 300, 0},       // all on one expert
                                                         {0, 0, 0, 0, 70},  // on the last
                                                         {15, 16, 31, 32, 33, 63, 64, 65}};
  for (const auto& split : splits) {
    check_all<BFloat16>(split);
    check_all<float>(split);
  }
}

TEST_F(CudaGroupedGemm, ManyExperts) {
  for (const std::int32_t experts : {31, 32, 33, 64, 100, 256, 1000, 1024}) {
    std::vector<std::int32_t> rows(static_cast<std::size_t>(experts));
    for (std::size_t e = 0; e < rows.size(); ++e) {
      rows[e] = static_cast<std::int32_t>(random_bits(5, 0, e) % 4 == 0 ? random_bits(5, 1, e) % 20
                                                                        : e % 2);
    }
    check<BFloat16>(rows, {32, 64});
    check<float>(rows, {19, 21});
  }
}

TEST_F(CudaGroupedGemm, DeepProducts) {
  // More steps of k than stages in flight, and a last step that is not full.
  check<BFloat16>({3, 40, 0, 130}, {96, 2056});
  check<BFloat16>({3, 40, 0, 130}, {192, 1024, 1024});
  check<float>({3, 40, 0, 130}, {96, 1031});
}

TEST_F(CudaGroupedGemm, TheSameLaunchServesAnyRouting) {
  // One captured launch, replayed while expert_offsets changes below it.
  const std::int64_t experts = 6;
  const std::int64_t rows = 90;
  const std::int64_t n = 72;
  const std::int64_t k = 136;
  const std::vector<BFloat16> a = normal<BFloat16>(rows * k, 0);
  const std::vector<BFloat16> w = normal<BFloat16>(experts * n * k, 1);
  const DeviceArray<BFloat16> given_a(device(), a);
  const DeviceArray<BFloat16> given_w(device(), w);
  const DeviceArray<std::int32_t> offsets(device(), experts + 1);
  const DeviceArray<BFloat16> c(device(), rows * n);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
  MOE_CUDA_CHECK(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed));
  grouped_gemm_mma(DType::kBF16,
                   {.a = given_a.data(),
                    .a_stride = k,
                    .w = given_w.data(),
                    .c = c.data(),
                    .c_stride = n,
                    .expert_offsets = offsets.data(),
                    .experts = experts,
                    .rows = rows,
                    .n = n,
                    .k = k},
                   choose_grouped_gemm_tile(DType::kBF16, rows, experts, n, 132), stream());
  MOE_CUDA_CHECK(cudaStreamEndCapture(stream(), &graph));
  MOE_CUDA_CHECK(cudaGraphInstantiate(&instance, graph, 0));
  for (const std::vector<std::int32_t>& split : {std::vector<std::int32_t>{15, 15, 15, 15, 15, 15},
                                                 {0, 90, 0, 0, 0, 0},
                                                 {0, 0, 0, 0, 0, 90},
                                                 {1, 2, 3, 4, 5, 75},
                                                 {16, 0, 17, 0, 57, 0}}) {
    const std::vector<std::int32_t> now = offsets_of(split);
    device().copy_from_host(offsets.data(), now.data(), now.size() * sizeof(now[0]));
    MOE_CUDA_CHECK(
        cudaMemsetAsync(c.data(), 0xff, static_cast<std::size_t>(rows * n) * 2, stream()));
    MOE_CUDA_CHECK(cudaGraphLaunch(instance, stream()));
    const std::vector<BFloat16> got = c.download();
    for (std::int64_t e = 0; e < experts; ++e) {
      for (std::int64_t r = now[static_cast<std::size_t>(e)];
           r < now[static_cast<std::size_t>(e) + 1]; ++r) {
        for (std::int64_t i = 0; i < n; ++i) {
          const double want = dot(a.data() + r * k, w.data() + (e * n + i) * k, k);
          ASSERT_LE(std::abs(to_float(got[static_cast<std::size_t>(r * n + i)]) - want),
                    0x1p-8 * std::abs(want) + 4 * 0x1p-24 * static_cast<double>(k));
        }
      }
    }
  }
  MOE_CUDA_CHECK(cudaGraphExecDestroy(instance));
  MOE_CUDA_CHECK(cudaGraphDestroy(graph));
}

TEST_F(CudaGroupedGemm, OffsetsBeyondTwoToThe31) {
  // a, w and c all reach beyond 2^31 elements; only the rows that are looked at are filled.
  const std::int64_t n = (std::int64_t{1} << 20) + 8;
  const std::int64_t k = 1032;
  const std::int64_t far = (std::int64_t{1} << 30) + 8;
  const std::int64_t experts = 3;
  const std::vector<std::int32_t> offsets = {0, 1, 1, 3};
  const auto bytes = [](std::int64_t count) { return static_cast<std::size_t>(count) * 2; };
  const std::uint64_t needed = bytes(2 * far + k) + bytes(experts * n * k) + bytes(2 * far + n);
  if (device().available_memory() < needed + (needed >> 3)) GTEST_SKIP() << "needs " << needed;
  const DeviceBuffer a(bytes(2 * far + k));
  const DeviceBuffer w(bytes(experts * n * k));
  const DeviceBuffer c(bytes(2 * far + n));
  MOE_CUDA_CHECK(cudaMemsetAsync(w.data(), 0, w.size(), stream()));
  const std::vector<BFloat16> row = normal<BFloat16>(k, 0);
  const std::vector<BFloat16> column = normal<BFloat16>(k, 1);
  const std::int64_t looked_at[] = {0, 1, n / 2, n - 1};
  for (std::int64_t r = 0; r < 3; ++r) {
    device().copy_from_host(a.as<BFloat16>() + r * far, row.data(), bytes(k));
  }
  for (const std::int64_t i : looked_at) {
    device().copy_from_host(w.as<BFloat16>() + (2 * n + i) * k, column.data(), bytes(k));
  }
  const DeviceArray<std::int32_t> given_offsets(device(), offsets);
  const double want = dot(row.data(), column.data(), k);
  for (const GroupedGemmTile& tile : grouped_gemm_tiles(DType::kBF16)) {
    MOE_CUDA_CHECK(cudaMemsetAsync(c.data(), 0xff, c.size(), stream()));
    grouped_gemm_mma(DType::kBF16,
                     {.a = a.data(),
                      .a_stride = far,
                      .w = w.data(),
                      .c = c.data(),
                      .c_stride = far,
                      .expert_offsets = given_offsets.data(),
                      .experts = experts,
                      .rows = 3,
                      .n = n,
                      .k = k},
                     tile, stream());
    for (std::int64_t r = 0; r < 3; ++r) {
      for (const std::int64_t i : looked_at) {
        BFloat16 got{};
        device().copy_to_host(&got, c.as<BFloat16>() + r * far + i, sizeof(got));
        const double value = r == 0 ? 0 : want;  // expert 0 has no weights here
        ASSERT_LE(std::abs(to_float(got) - value), 0x1p-8 * std::abs(value) + 1e-3)
            << "tile " << tile.rows << " row " << r << " column " << i;
      }
    }
  }
}

TEST(GroupedGemmTile, GrowsWithTheRowsOfAnExpert) {
  // The choice is a host function: no GPU needed.
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    int height = 0;
    for (const std::int64_t rows : {8, 64, 256, 1024, 4096, 65536}) {
      const GroupedGemmTile tile = choose_grouped_gemm_tile(dtype, rows, 8, 4096, 132);
      EXPECT_GE(tile.rows, height) << rows;
      height = tile.rows;
      const std::vector<GroupedGemmTile> tiles = grouped_gemm_tiles(dtype);
      EXPECT_NE(std::find(tiles.begin(), tiles.end(), tile), tiles.end());
    }
    EXPECT_EQ(height, grouped_gemm_tiles(dtype).back().rows);
  }
  // Few columns are cut finer, so that they reach more multiprocessors.
  EXPECT_EQ(choose_grouped_gemm_tile(DType::kBF16, 8, 128, 8192, 132), (GroupedGemmTile{16, 64}));
  EXPECT_EQ(choose_grouped_gemm_tile(DType::kBF16, 8, 128, 512, 132), (GroupedGemmTile{16, 32}));
}

}  // namespace
}  // namespace moe::cuda
