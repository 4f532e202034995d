// Every tile of every tier that this machine has, against fp64.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "cpu/isa/gemm_checks.h"
#include "cpu/isa/kernels.h"

namespace moe::cpu {
namespace {

class GemmTile : public testing::TestWithParam<std::tuple<Isa, DType>> {
 protected:
  [[nodiscard]] DType dtype() const { return std::get<1>(GetParam()); }
  [[nodiscard]] const GemmKernels& kernels() const {
    return kernels_for(std::get<0>(GetParam())).gemm(dtype());
  }
  /// body(shape, rows, panels): every block that a shape of the table can meet, the last panel of an
  /// odd number included.
  template <class Body>
  void for_each_block(const Body& body) const {
    for (int index = 0; index < kernels().shape_count; ++index) {
      const TileShape shape = kernels().shapes[index];
      for (int panels = 1; panels <= shape.panels; ++panels) {
        for (int rows = 1; rows <= shape.rows; ++rows) body(TileShape{shape.rows, panels}, rows);
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Tiers, GemmTile,
                         testing::Combine(testing::ValuesIn(available_isas()),
                                          testing::Values(DType::kF32, DType::kBF16)),
                         [](const auto& tier) {
                           return std::string(name_of(std::get<0>(tier.param))) + "_" +
                                  std::string(name_of(std::get<1>(tier.param)));
                         });

TEST_P(GemmTile, StoresTheProductInsideItsColumnsOnly) {
  for_each_block([&](TileShape shape, int rows) {
    for (const std::int64_t depth : {1, 2, 7, 67}) {
      SCOPED_TRACE(testing::Message() << rows << "x" << shape.panels << " depth " << depth);
      const GemmCase gemm(kernels(), dtype(), rows, shape.panels, depth);
      const TileFunction tile = kernels().tile(shape, rows, 0);
      // Full, and ending inside every vector of the last panel.
      for (std::int64_t missing = 0; missing < kernels().panel_columns(); missing += 5) {
        expect_store(kernels(), tile, dtype(), gemm, gemm.columns - missing, gemm.padded);
        if (HasFatalFailure()) return;
      }
    }
  });
}

TEST_P(GemmTile, ChunksOfTheDepthAddUp) {
  for_each_block([&](TileShape shape, int rows) {
    SCOPED_TRACE(testing::Message() << rows << "x" << shape.panels);
    const GemmCase gemm(kernels(), dtype(), rows, shape.panels, 5 * kernels().depth_multiple);
    const TileFunction tile = kernels().tile(shape, rows, 0);
    for (const std::int64_t chunk : {1, 2, 3, 5}) {
      expect_store(kernels(), tile, dtype(), gemm, gemm.columns, chunk * kernels().depth_multiple);
      if (HasFatalFailure()) return;
    }
  });
}

TEST_P(GemmTile, AddsBiasesAndScalesRows) {
  for_each_block([&](TileShape shape, int rows) {
    SCOPED_TRACE(testing::Message() << rows << "x" << shape.panels);
    const GemmCase gemm(kernels(), dtype(), rows, shape.panels, 5 * kernels().depth_multiple);
    for (const std::int64_t chunk : {2, 5}) {
      expect_adjusted_store(kernels(), kernels().tile(shape, rows, 0), dtype(), gemm,
                            chunk * kernels().depth_multiple);
      if (HasFatalFailure()) return;
    }
  });
}

TEST_P(GemmTile, PrefetchChangesNothing) {
  for_each_block([&](TileShape shape, int rows) {
    SCOPED_TRACE(testing::Message() << rows << "x" << shape.panels);
    const GemmCase gemm(kernels(), dtype(), rows, shape.panels, 34);
    for (int lines = 1; lines <= kMaxPrefetchLines; ++lines) {
      expect_store(kernels(), kernels().tile(shape, rows, lines), dtype(), gemm, gemm.columns,
                   gemm.padded);
      if (HasFatalFailure()) return;
    }
  });
}

TEST_P(GemmTile, SwiGluWritesTheBlockOfTheNextProduct) {
  for_each_block([&](TileShape shape, int rows) {
    for (const std::int64_t depth : {1, 19, 64}) {
      SCOPED_TRACE(testing::Message() << rows << "x" << shape.panels << " depth " << depth);
      const GemmCase gemm(kernels(), dtype(), rows, shape.panels, depth);
      expect_swiglu(kernels(), kernels().tile(shape, rows, 0), dtype(), gemm);
      if (HasFatalFailure()) return;
    }
  });
}

/// silu over the whole range of fp32: depth 1 with A = 1 makes gate = B exactly.
TEST_P(GemmTile, SwiGluIsDefinedForEveryGate) {
  const float gates[] = {0.0F,   -0.0F, 1e-30F, -1e-30F, 0.5F,    -0.5F, 20.0F,  -20.0F, 86.0F,
                         -86.0F, 89.0F, -89.0F, 200.0F,  -200.0F, 1e30F, -1e30F, 3e38F};
  for (const float gate : gates) {
    GemmCase gemm(kernels(), dtype(), 1, 1, 1);
    const auto fill = [&](Values& values, float value) {
      std::fill(values.f32.begin(), values.f32.end(),
                dtype() == DType::kF32 ? value : to_float(to_bfloat16(value)));
      std::fill(values.bf16.begin(), values.bf16.end(), to_bfloat16(value));
    };
    fill(gemm.a_values, 1.0F);
    fill(gemm.b_values, gate);
    for (int lane = kernels().lanes; lane < kernels().panel_columns(); ++lane) {
      gemm.b_values.f32[static_cast<std::size_t>(lane)] = 1.0F;
      gemm.b_values.bf16[static_cast<std::size_t>(lane)] = to_bfloat16(1.0F);
    }
    gemm.repack(kernels(), dtype());
    const auto act = run_swiglu(kernels(), kernels().tile({1, 1}, 1, 0), dtype(), gemm, 0,
                                std::max(kernels().lanes, kernels().depth_multiple));
    const double value = gemm.b_values.f32[0];
    const double expected = value / (1.0 + std::exp(-value));
    const float got = block_value(act.data(), kernels().row_layout, 1, 1, 0, 0);
    const double relative = dtype() == DType::kF32 ? 0x1p-21 : 0x1p-8;
    // Where exp saturates, silu is below 1e-35 and any value that small will do. bf16 inputs below
    // the normal range count as zero in hardware.
    EXPECT_LE(std::fabs(got - expected), std::fabs(expected) * relative + 1e-35)
        << "gate " << value;
  }
}

TEST_P(GemmTile, NaNPassesThrough) {
  GemmCase gemm(kernels(), dtype(), 1, 1, 3);
  gemm.a_values.f32[1] = std::numeric_limits<float>::quiet_NaN();
  gemm.a_values.bf16[1] = to_bfloat16(gemm.a_values.f32[1]);
  gemm.repack(kernels(), dtype());
  const auto act = run_swiglu(kernels(), kernels().tile({1, 1}, 1, 0), dtype(), gemm, 0,
                              std::max(kernels().lanes, kernels().depth_multiple));
  for (int lane = 0; lane < kernels().lanes; ++lane) {
    EXPECT_TRUE(
        std::isnan(block_value(act.data(), kernels().row_layout, 1, kernels().lanes, 0, lane)))
        << lane;
  }
}

}  // namespace
}  // namespace moe::cpu
