// What every tile must satisfy, for the tiles of the tables and for the emulated AMX tile.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "cpu/isa/gemm_case.h"

namespace moe::cpu {

inline void expect_store(const GemmKernels& kernels, TileFunction function, DType dtype,
                         const GemmCase& gemm, std::int64_t columns, std::int64_t chunk) {
  const auto c = run_store(kernels, function, dtype, gemm, columns, chunk);
  const std::int64_t stride = columns + 3;
  for (std::int64_t row = 0; row < gemm.rows; ++row) {
    for (std::int64_t column = 0; column < stride; ++column) {
      const double got = c[static_cast<std::size_t>(row * stride + column)];
      if (column < columns) {
        ASSERT_LE(std::fabs(got - gemm.exact(row, column)), gemm.allowed(row, column))
            << "row " << row << " column " << column;
      } else {
        ASSERT_EQ(got, -77.0) << "written behind the last column, row " << row;
      }
    }
  }
}

/// A bias, a row's scale and both, over the whole depth and in chunks: sum * scale + bias.
inline void expect_adjusted_store(const GemmKernels& kernels, TileFunction function, DType dtype,
                                  const GemmCase& gemm, std::int64_t chunk) {
  std::vector<float> bias;
  std::vector<float> scale;
  for (std::int64_t i = 0; i < gemm.columns; ++i) bias.push_back(1.0F + static_cast<float>(i));
  for (std::int64_t i = 0; i < gemm.rows; ++i) scale.push_back(0.5F + static_cast<float>(i));
  const std::int64_t columns = gemm.columns - 3;
  for (const Adjustment& adjustment :
       {Adjustment{.bias = bias.data()}, Adjustment{.row_scale = scale.data()},
        Adjustment{.bias = bias.data(), .row_scale = scale.data()}}) {
    const auto c = run_store(kernels, function, dtype, gemm, columns, chunk, adjustment);
    for (std::int64_t row = 0; row < gemm.rows; ++row) {
      const double factor =
          adjustment.row_scale == nullptr ? 1 : scale[static_cast<std::size_t>(row)];
      for (std::int64_t column = 0; column < columns; ++column) {
        const double added =
            adjustment.bias == nullptr ? 0 : bias[static_cast<std::size_t>(column)];
        const double expected = gemm.exact(row, column) * factor + added;
        // A bias that the sums begin with is in every one of their roundings.
        const double allowed = gemm.allowed(row, column) * factor +
                               std::fabs(added) * (static_cast<double>(gemm.depth) + 2) * 0x1p-24;
        const double got = c[static_cast<std::size_t>(row * (columns + 3) + column)];
        ASSERT_LE(std::fabs(got - expected), allowed)
            << "row " << row << " column " << column << (adjustment.bias != nullptr ? " bias" : "")
            << (adjustment.row_scale != nullptr ? " scale" : "");
      }
    }
  }
}

/// Columns before and behind the tile's keep the canary.
inline void expect_swiglu(const GemmKernels& kernels, TileFunction function, DType dtype,
                          const GemmCase& gemm) {
  const std::int64_t multiple = std::max(kernels.depth_multiple, 2 * kernels.lanes);
  const std::int64_t act_column = multiple;
  const std::int64_t act_depth = 2 * multiple + gemm.panels * multiple;
  const auto act = run_swiglu(kernels, function, dtype, gemm, act_column, act_depth);
  const std::vector<char> canary(4, 0x55);
  const float empty = kernels.row_layout == RowLayout::kColumns
                          ? block_value(canary.data(), RowLayout::kColumns, 1, 1, 0, 0)
                          : block_value(canary.data(), RowLayout::kRows, 1, 1, 0, 0);
  for (std::int64_t row = 0; row < gemm.rows; ++row) {
    for (std::int64_t k = 0; k < act_depth; ++k) {
      const float got = block_value(act.data(), kernels.row_layout, gemm.rows, act_depth, row, k);
      const std::int64_t column = k - act_column;
      if (column < 0 || column >= gemm.panels * kernels.lanes) {
        ASSERT_EQ(got, empty) << "written outside, row " << row << " column " << k;
        continue;
      }
      const std::int64_t at =
          column / kernels.lanes * kernels.panel_columns() + column % kernels.lanes;
      const double gate = gemm.exact(row, at);
      const double up = gemm.exact(row, at + kernels.lanes);
      const double sigmoid = 1.0 / (1.0 + std::exp(-gate));
      const double expected = gate * sigmoid * up;
      // |silu'| <= 1.1: errors of the sums pass on, then 8 roundings of SwiGLU itself, then bf16.
      const double from_sums = 1.1 * gemm.allowed(row, at) * std::fabs(up) +
                               std::fabs(gate * sigmoid) * gemm.allowed(row, at + kernels.lanes);
      const double from_rounding =
          std::fabs(expected) * (8 * 0x1p-24 + (dtype == DType::kBF16 ? 0x1p-8 : 0));
      ASSERT_LE(std::fabs(got - expected), from_sums + from_rounding + 1e-37)
          << "row " << row << " column " << column;
      if (dtype == DType::kBF16) {
        ASSERT_EQ(to_float(to_bfloat16(got)), got) << "not rounded to bf16";
      }
    }
  }
}

}  // namespace moe::cpu
