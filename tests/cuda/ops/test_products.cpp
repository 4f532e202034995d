// The library's GEMM and our matrix-vector products against fp64 loops on the host.
#include <algorithm>
#include <cmath>

#include "core/rng.h"
#include "core/scalar.h"
#include "cuda/device_test.h"
#include "cuda/ops/gemm_cublaslt.h"
#include "cuda/ops/row_products.h"
#include "moe/error.h"

namespace moe::cuda {
namespace {

template <class Element>
constexpr DType kTypeOf = sizeof(Element) == 4 ? DType::kF32 : DType::kBF16;

template <class Element>
std::vector<Element> normal(std::int64_t count, std::uint64_t stream, double scale = 1) {
  std::vector<Element> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = from_float<Element>(static_cast<float>(scale * random_normal(21, stream, i)));
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

/// fp32 accumulation of `depth` products of unit size, and one rounding to the stored type.
double allowed(double want, std::int64_t depth, std::size_t stored_bytes) {
  const double sum = 4 * 0x1p-24 * static_cast<double>(depth);
  return sum + (stored_bytes == 4 ? 0 : 0x1p-8 * std::abs(want));
}

class CudaProducts : public CudaTest {
 protected:
  template <class In, class Out>
  void check_gemm(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t misaligned,
                  std::int64_t extra_a = 0, std::int64_t batch = 1) {
    SCOPED_TRACE(testing::Message() << "m=" << m << " n=" << n << " k=" << k << " in "
                                    << name_of(kTypeOf<In>) << " out " << name_of(kTypeOf<Out>)
                                    << " offset " << misaligned << " batch " << batch);
    const std::int64_t a_stride = k + extra_a;
    const std::vector<In> a = normal<In>(batch * m * a_stride, 0);
    const std::vector<In> w = normal<In>(batch * n * k, 1);
    const DeviceArray<In> given_a(device(), a, misaligned);
    const DeviceArray<In> given_w(device(), w, misaligned);
    const DeviceArray<Out> c(device(), batch * m * n, misaligned);
    CublasLt library;
    Matmul gemm(library, {.n = n,
                          .k = k,
                          .in = kTypeOf<In>,
                          .out = kTypeOf<Out>,
                          .a_stride = a_stride,
                          .batch_stride_w = n * k,
                          .batch_stride_a = m * a_stride,
                          .batch_stride_c = m * n});
    gemm.run(given_a.data(), given_w.data(), c.data(), m, stream(), batch);
    const std::vector<Out> got = c.download();
    for (std::int64_t row = 0; row < batch * m; ++row) {
      for (std::int64_t column = 0; column < n; ++column) {
        const double want =
            dot(a.data() + row * a_stride, w.data() + (row / m * n + column) * k, k);
        const double is = to_float(got[static_cast<std::size_t>(row * n + column)]);
        ASSERT_LE(std::abs(is - want), allowed(want, k, sizeof(Out)))
            << "row " << row << " column " << column;
      }
    }
    EXPECT_TRUE(c.intact());
  }

  template <class Element>
  void check_rows(std::int64_t rows, std::int64_t per_input, std::int64_t columns,
                  std::int64_t depth, std::int64_t misaligned, bool gathered) {
    SCOPED_TRACE(testing::Message() << rows << " rows, " << columns << " x " << depth
                                    << " gathered " << gathered << " offset " << misaligned);
    constexpr DType kType = kTypeOf<Element>;
    const std::int64_t experts = gathered ? rows : 5;
    const std::int64_t matrix = columns * depth;
    const double scale = 1 / std::sqrt(static_cast<double>(depth));
    const std::vector<Element> gate = normal<Element>(experts * matrix, 2, scale);
    const std::vector<Element> up = normal<Element>(experts * matrix, 3, scale);
    const std::vector<Element> x = normal<Element>((rows + per_input - 1) / per_input * depth, 4);
    std::vector<std::int32_t> idx(static_cast<std::size_t>(rows));
    for (std::size_t r = 0; r < idx.size(); ++r) {
      idx[r] = gathered ? static_cast<std::int32_t>(r)
                        : static_cast<std::int32_t>(random_bits(22, 0, r) % 5);
    }
    const DeviceArray<Element> given_gate(device(), gate, misaligned);
    const DeviceArray<Element> given_up(device(), up, misaligned);
    const DeviceArray<Element> given_x(device(), x, misaligned);
    const DeviceArray<std::int32_t> given_idx(device(), idx);
    const std::int32_t* const chosen = gathered ? nullptr : given_idx.data();

    const std::int64_t stride = columns + 3;
    const DeviceArray<Element> act(device(), rows * stride);
    product_activation(kType, {}, {{.data = given_gate.data(), .stride = matrix}, chosen},
                       {{.data = given_up.data(), .stride = matrix}, chosen}, given_x.data(), rows,
                       per_input, columns, depth, act.data(), stride, stream());
    const std::vector<Element> got = act.download();
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t expert = idx[static_cast<std::size_t>(r)];
      for (std::int64_t i = 0; i < columns; ++i) {
        const Element* const input = x.data() + r / per_input * depth;
        const double g = dot(gate.data() + expert * matrix + i * depth, input, depth);
        const double u = dot(up.data() + expert * matrix + i * depth, input, depth);
        const double want = g / (1 + std::exp(-g)) * u;
        ASSERT_LE(std::abs(to_float(got[static_cast<std::size_t>(r * stride + i)]) - want),
                  1e-5 * (1 + std::abs(g)) * (1 + std::abs(u)) +
                      (sizeof(Element) == 4 ? 0 : 0x1p-8 * std::abs(want)))
            << "row " << r << " column " << i;
      }
    }
    EXPECT_TRUE(act.intact());

    // The same matrices as down projections: `rows` tokens would need K·rows inputs; reuse gate.
    const std::int64_t tokens = rows / per_input;
    if (tokens == 0) return;
    const std::vector<Element> inner = normal<Element>(rows * depth, 5);
    const DeviceArray<Element> given_inner(device(), inner, misaligned);
    std::vector<float> weights(static_cast<std::size_t>(rows));
    for (std::size_t r = 0; r < weights.size(); ++r) {
      weights[r] = static_cast<float>(random_uniform(23, 0, r));
    }
    const DeviceArray<float> given_weights(device(), weights);
    const DeviceArray<Element> y(device(), tokens * columns);
    product_combine(kType, {{.data = given_gate.data(), .stride = matrix}, chosen},
                    given_inner.data(), given_weights.data(), tokens, per_input, columns, depth,
                    y.data(), stream());
    const std::vector<Element> sums = y.download();
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t h = 0; h < columns; ++h) {
        double want = 0;
        for (std::int64_t k = 0; k < per_input; ++k) {
          const auto r = static_cast<std::size_t>(t * per_input + k);
          want += weights[r] * dot(gate.data() + idx[r] * matrix + h * depth,
                                   inner.data() + static_cast<std::int64_t>(r) * depth, depth);
        }
        ASSERT_LE(std::abs(to_float(sums[static_cast<std::size_t>(t * columns + h)]) - want),
                  1e-5 * (1 + static_cast<double>(per_input)) +
                      (sizeof(Element) == 4 ? 0 : 0x1p-8 * std::abs(want)))
            << "token " << t << " column " << h;
      }
    }
    EXPECT_TRUE(y.intact());
  }
};

TEST_F(CudaProducts, GemmOfAnyShape) {
  for (const std::int64_t m : {1, 2, 17, 128, 300}) {
    check_gemm<BFloat16, BFloat16>(m, 256, 512, 0);
    check_gemm<BFloat16, float>(m, 8, 1024, 0);
    check_gemm<float, float>(m, 96, 256, 0);
    check_gemm<BFloat16, BFloat16>(m, 64, 128, 0, 128);  // rows of A apart
  }
}

TEST_F(CudaProducts, GemmOfOddSizesAndAddresses) {
  for (const std::int64_t m : {1, 5, 130}) {
    check_gemm<BFloat16, BFloat16>(m, 33, 47, 0);
    check_gemm<BFloat16, float>(m, 3, 1, 0);
    check_gemm<BFloat16, BFloat16>(m, 64, 64, 1);
    check_gemm<float, float>(m, 1, 100, 1);
    check_gemm<float, float>(m, 45, 45, 0, 45);
  }
}

TEST_F(CudaProducts, GemmInBatches) {
  check_gemm<BFloat16, BFloat16>(1, 256, 128, 0, 0, 50);
  check_gemm<BFloat16, BFloat16>(1, 15, 33, 0, 0, 7);
  check_gemm<float, float>(1, 64, 64, 0, 0, 20);
  check_gemm<BFloat16, BFloat16>(1, 8, 8, 0, 0, 70000);  // beyond one grid dimension
}

TEST_F(CudaProducts, RowBucketsCoverEveryCount) {
  std::int64_t buckets = 0;
  std::int64_t previous = 0;
  for (std::int64_t m = 1; m <= 100000; ++m) {
    const std::int64_t bucket = row_bucket(m);
    ASSERT_GE(bucket, m);
    ASSERT_LE(static_cast<double>(bucket), (m <= 64 ? 1 : 1 + 1.0 / 32) * static_cast<double>(m));
    ASSERT_EQ(row_bucket(bucket), bucket);
    buckets += bucket != previous ? 1 : 0;
    previous = bucket;
  }
  EXPECT_LT(buckets, 64 + 32 * 11);
}

TEST_F(CudaProducts, RowProductsInPlaceAndGathered) {
  for (const bool gathered : {false, true}) {
    for (const std::int64_t depth : {1, 33, 64, 256, 1000}) {
      for (const std::int64_t columns : {1, 3, 32, 37}) {
        check_rows<BFloat16>(6, 2, columns, depth, 0, gathered);
        check_rows<float>(6, 3, columns, depth, 0, gathered);
      }
      check_rows<BFloat16>(5, 1, 40, depth, 1, gathered);
    }
  }
  check_rows<BFloat16>(64, 8, 100, 512, 0, false);
}

}  // namespace
}  // namespace moe::cuda
