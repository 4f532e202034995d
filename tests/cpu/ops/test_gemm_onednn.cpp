#include "cpu/ops/gemm_onednn.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "core/memory.h"
#include "core/rng.h"
#include "core/scalar.h"
#include "moe/error.h"

namespace moe::cpu::onednn {
namespace {

#if MOE_HAVE_ONEDNN

/// A[m,k] and W[n,k] in a dtype, and the fp64 product of what that dtype holds.
struct Product {
  Product(DType dtype, std::int64_t m_in, std::int64_t n_in, std::int64_t k_in)
      : m(m_in), n(n_in), k(k_in), type(dtype), a(fill(1, m * k)), w(fill(2, n * k)) {}

  [[nodiscard]] HostBuffer fill(std::uint64_t stream, std::int64_t count) const {
    HostBuffer buffer(static_cast<std::size_t>(count) * size_of(type));
    for (std::int64_t i = 0; i < count; ++i) {
      const auto value =
          static_cast<float>(random_normal(17, stream, static_cast<std::uint64_t>(i)));
      if (type == DType::kF32) {
        buffer.as<float>()[i] = value;
      } else {
        buffer.as<BFloat16>()[i] = to_bfloat16(value);
      }
    }
    return buffer;
  }
  [[nodiscard]] double at(const HostBuffer& buffer, std::int64_t i) const {
    return type == DType::kF32 ? buffer.as<float>()[i] : to_float(buffer.as<BFloat16>()[i]);
  }

  /// Every element of c within k fp32 roundings of the fp64 sum.
  void expect_equal(const std::vector<float>& c, const std::string& what) const {
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t column = 0; column < n; ++column) {
        double want = 0;
        double magnitude = 0;
        for (std::int64_t i = 0; i < k; ++i) {
          const double term = at(a, row * k + i) * at(w, column * k + i);
          want += term;
          magnitude += std::abs(term);
        }
        const double got = c[static_cast<std::size_t>(row * n + column)];
        ASSERT_LE(std::abs(got - want), magnitude * static_cast<double>(k + 1) * 0x1p-24)
            << what << " row " << row << " column " << column << ": " << got << " for " << want;
      }
    }
  }

  std::int64_t m, n, k;
  DType type;
  HostBuffer a, w;
};

std::vector<float> poisoned(std::int64_t count) {
  return std::vector<float>(static_cast<std::size_t>(count), std::nanf(""));
}

class GemmOnednn : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    const std::string reason = unavailable(GetParam(), best_isa());
    if (!reason.empty()) GTEST_SKIP() << reason;
    claim_isa(GetParam(), best_isa());
  }
};
INSTANTIATE_TEST_SUITE_P(DTypes, GemmOnednn, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(GemmOnednn, MatchesFp64OnAwkwardSizes) {
  struct Sizes {
    std::int64_t m, n, k;
  };
  for (const Sizes& s :
       {Sizes{1, 1, 1}, Sizes{1, 7, 5}, Sizes{2, 64, 64}, Sizes{3, 63, 33}, Sizes{4, 65, 31},
        Sizes{7, 130, 257}, Sizes{17, 8, 129}, Sizes{33, 96, 1000}, Sizes{129, 70, 48}}) {
    const Product product(GetParam(), s.m, s.n, s.k);
    for (const int threads : {1, 2, 3}) {
      const std::string what = "m=" + std::to_string(s.m) + " n=" + std::to_string(s.n) +
                               " k=" + std::to_string(s.k) + " threads=" + std::to_string(threads);
      const WeightLayout layout(GetParam(), s.n, s.k, 64, threads);
      EXPECT_EQ(layout.n(), s.n);
      EXPECT_EQ(layout.k(), s.k);
      const HostBuffer storage(layout.bytes());
      const PackedMatrix w(layout, product.w.data(), storage.data());
      const Gemm gemm(layout, s.m, threads);
      // The library's fallback is right but made of plain loops: packing must not lead there.
      EXPECT_EQ(gemm.implementation().find("ref"), std::string::npos) << gemm.implementation();
      GemmCall call(gemm);
      const HostBuffer scratch(gemm.scratch_bytes());
      std::vector<float> c = poisoned(s.m * s.n);
      {
        const ThreadScope scope(threads);
        ASSERT_EQ(call.run(product.a.data(), w, c.data(), scratch.data()), 0);
      }
      product.expect_equal(c, what);
    }
  }
}

// One layout must serve every row count, whatever count the library was asked about.
TEST_P(GemmOnednn, LayoutChosenForManyRowsServesFew) {
  const WeightLayout layout(GetParam(), 128, 96, 512, 1);
  const Product product(GetParam(), 1, 128, 96);
  const HostBuffer storage(layout.bytes());
  const PackedMatrix w(layout, product.w.data(), storage.data());
  const Gemm gemm(layout, 1, 1);
  GemmCall call(gemm);
  const HostBuffer scratch(gemm.scratch_bytes());
  std::vector<float> c = poisoned(128);
  ASSERT_EQ(call.run(product.a.data(), w, c.data(), scratch.data()), 0);
  product.expect_equal(c, "m=1");
}

// The library's own scratchpad fails here: see the note at GemmCall.
TEST_P(GemmOnednn, OneGemmInManyThreadsAtOnce) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 50;
  const Product product(GetParam(), 37, 200, 130);
  const WeightLayout layout(GetParam(), product.n, product.k, product.m, 1);
  const HostBuffer storage(layout.bytes());
  const PackedMatrix w(layout, product.w.data(), storage.data());
  const Gemm gemm(layout, product.m, 1);
  const std::size_t scratch_bytes = round_up(gemm.scratch_bytes(), kArenaAlignment);
  const HostBuffer scratch(scratch_bytes * kThreads + 1);
  std::vector<GemmCall> calls;
  std::vector<std::vector<float>> c;
  for (int thread = 0; thread < kThreads; ++thread) {
    calls.emplace_back(gemm);
    c.push_back(poisoned(product.m * product.n));
  }
  int failures = 0;
#pragma omp parallel num_threads(kThreads) reduction(+ : failures)
  {
    const auto thread = static_cast<std::size_t>(omp_get_thread_num());
    for (int round = 0; round < kRounds; ++round) {
      failures += calls[thread].run(product.a.data(), w, c[thread].data(),
                                    scratch.as<std::byte>() + thread * scratch_bytes) != 0;
    }
  }
  EXPECT_EQ(failures, 0);
  for (const auto& result : c) product.expect_equal(result, "concurrent");
}

TEST_P(GemmOnednn, MovedObjectsKeepWorking) {
  const Product product(GetParam(), 5, 40, 24);
  WeightLayout first(GetParam(), product.n, product.k, 5, 1);
  const WeightLayout layout = std::move(first);
  const HostBuffer storage(layout.bytes());
  PackedMatrix packed(layout, product.w.data(), storage.data());
  const PackedMatrix w = std::move(packed);
  Gemm made(layout, 5, 1);
  const Gemm gemm = std::move(made);
  GemmCall prepared(gemm);
  GemmCall call = std::move(prepared);
  const HostBuffer scratch(gemm.scratch_bytes());
  std::vector<float> c = poisoned(product.m * product.n);
  ASSERT_EQ(call.run(product.a.data(), w, c.data(), scratch.data()), 0);
  product.expect_equal(c, "moved");
}

TEST(OnednnIsa, ScalarCannotBeHeld) {
  EXPECT_NE(unavailable(DType::kF32, Isa::kScalar).find("scalar"), std::string::npos);
  EXPECT_THROW(claim_isa(DType::kF32, Isa::kScalar), Error);
}

TEST(OnednnIsa, LowerCeilingAfterFirstUseIsRefusedNotIgnored) {
  if (best_isa() < Isa::kAvx512f) GTEST_SKIP() << "needs two tiers, this machine has avx2 at most";
  claim_isa(DType::kF32, best_isa());
  if (isa_in_use() <= Isa::kAvx2) GTEST_SKIP() << "oneDNN is capped from outside";
  const std::string reason = unavailable(DType::kF32, Isa::kAvx2);
  EXPECT_NE(reason.find("already runs with"), std::string::npos) << reason;
  try {
    claim_isa(DType::kF32, Isa::kAvx2);
    FAIL() << "a ceiling below the instruction set in use was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_EQ(error.what(), reason);
  }
}

/// Ends the process with 0 when a first claim at `ceiling` holds and bf16 is answered as expected.
[[noreturn]] void check_ceiling_in_fresh_process(Isa ceiling) {
  const bool bf16_expected = ceiling >= Isa::kAvx512f;
  if (unavailable(DType::kBF16, ceiling).empty() != bf16_expected) std::_Exit(2);
  claim_isa(DType::kF32, ceiling);
  const WeightLayout layout(DType::kF32, 64, 64, 8, 1);
  const Gemm gemm(layout, 8, 1);
  std::cerr << name_of(isa_in_use()) << " " << gemm.implementation() << "\n";
  if (isa_in_use() != ceiling) std::_Exit(3);
  if (layout.isa() != std::min(ceiling, Isa::kAvx512f)) std::_Exit(5);  // fp32 has no higher tier
  const bool wide = gemm.implementation().find("avx512") != std::string::npos;
  std::_Exit(wide == (ceiling >= Isa::kAvx512f) ? 0 : 4);
}

TEST(OnednnIsaDeathTest, FirstClaimCapsTheLibrary) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";  // a fresh process: nothing claimed yet
  for (const Isa ceiling : available_isas()) {
    if (ceiling == Isa::kScalar) continue;
    EXPECT_EXIT(check_ceiling_in_fresh_process(ceiling), testing::ExitedWithCode(0), "")
        << name_of(ceiling);
  }
}

#else

TEST(GemmOnednn, BuildWithoutTheLibrarySaysSo) {
  EXPECT_EQ(unavailable(DType::kF32, best_isa()), "built without oneDNN (libdnnl-dev)");
  EXPECT_THROW(claim_isa(DType::kF32, best_isa()), Error);
  EXPECT_THROW(WeightLayout(DType::kF32, 1, 1, 1, 1), Error);
}

#endif

}  // namespace
}  // namespace moe::cpu::onednn
