// One product A·B in the packed layouts of a tier, and its fp64 answer.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/rng.h"
#include "core/scalar.h"
#include "cpu/isa/gemm_tile.h"
#include "cpu/ops/pack.h"

namespace moe::cpu {

/// Values of a dtype with their fp32 meaning.
struct Values {
  std::vector<float> f32;
  std::vector<BFloat16> bf16;

  Values(std::int64_t count, DType dtype, std::uint64_t stream, double scale) {
    for (std::int64_t i = 0; i < count; ++i) {
      const double normal = random_normal(5, stream, static_cast<std::uint64_t>(i)) * scale;
      const BFloat16 rounded = to_bfloat16(static_cast<float>(normal));
      bf16.push_back(rounded);
      f32.push_back(dtype == DType::kF32 ? static_cast<float>(normal) : to_float(rounded));
    }
  }
  [[nodiscard]] const void* at(DType dtype, std::int64_t index) const {
    return dtype == DType::kF32 ? static_cast<const void*>(f32.data() + index)
                                : static_cast<const void*>(bf16.data() + index);
  }
};

/// Element (row, k) of a packed block.
inline float block_value(const void* block, RowLayout layout, std::int64_t rows, std::int64_t depth,
                         std::int64_t row, std::int64_t k) {
  switch (layout) {
    case RowLayout::kColumns:
      return static_cast<const float*>(block)[k * rows + row];
    case RowLayout::kPairs:
      return to_float(static_cast<const BFloat16*>(block)[(k / 2 * rows + row) * 2 + k % 2]);
    case RowLayout::kRows:
      return to_float(static_cast<const BFloat16*>(block)[row * depth + k]);
  }
  return 0;
}

struct GemmCase {
  GemmCase(const GemmKernels& kernels, DType dtype, std::int64_t rows_in, std::int64_t panels_in,
           std::int64_t depth_in)
      : rows(rows_in),
        panels(panels_in),
        depth(depth_in),
        padded((depth + kernels.depth_multiple - 1) / kernels.depth_multiple *
               kernels.depth_multiple),
        columns(panels * kernels.panel_columns()),
        a_values(rows * depth, dtype, 1, 1.0),
        b_values(columns * depth, dtype, 2, 1.0 / std::sqrt(static_cast<double>(depth))),
        a(static_cast<std::size_t>(rows * padded * row_element_bytes(kernels.row_layout))),
        b(static_cast<std::size_t>(panels *
                                   PackedMatrices::panel_bytes_for(kernels, dtype, padded))) {
    repack(kernels, dtype);
  }

  /// Packs a_values and b_values again after a change.
  void repack(const GemmKernels& kernels, DType dtype) {
    std::vector<const void*> pointers;
    for (std::int64_t row = 0; row < rows; ++row) {
      pointers.push_back(a_values.at(dtype, row * depth));
    }
    pack_rows(kernels.row_layout, dtype, pointers.data(), static_cast<int>(rows), depth, padded,
              a.data());
    const RowLayout panel_layout = dtype == DType::kF32 ? RowLayout::kColumns : RowLayout::kPairs;
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      pointers.clear();
      for (std::int64_t c = 0; c < kernels.panel_columns(); ++c) {
        pointers.push_back(b_values.at(dtype, (panel * kernels.panel_columns() + c) * depth));
      }
      pack_rows(panel_layout, dtype, pointers.data(), kernels.panel_columns(), depth, padded,
                b.data() + panel * PackedMatrices::panel_bytes_for(kernels, dtype, padded));
    }
  }

  [[nodiscard]] double exact(std::int64_t row, std::int64_t column) const {
    double sum = 0;
    for (std::int64_t k = 0; k < depth; ++k) sum += term(row, column, k);
    return sum;
  }
  [[nodiscard]] double magnitude(std::int64_t row, std::int64_t column) const {
    double sum = 0;
    for (std::int64_t k = 0; k < depth; ++k) sum += std::fabs(term(row, column, k));
    return sum;
  }
  /// Rounding of fp32 sums of `depth` products.
  [[nodiscard]] double allowed(std::int64_t row, std::int64_t column) const {
    return magnitude(row, column) * (static_cast<double>(depth) + 2) * 0x1p-24 + 1e-37;
  }

  std::int64_t rows, panels, depth, padded, columns;
  Values a_values, b_values;
  std::vector<char> a, b;

 private:
  [[nodiscard]] double term(std::int64_t row, std::int64_t column, std::int64_t k) const {
    return static_cast<double>(a_values.f32[static_cast<std::size_t>(row * depth + k)]) *
           b_values.f32[static_cast<std::size_t>(column * depth + k)];
  }
};

/// What a tile does to its sums before they are stored; null: nothing.
struct Adjustment {
  const float* bias = nullptr;       // [columns]
  const float* row_scale = nullptr;  // [rows]
};

/// Runs `function` over the depth in pieces of `chunk`, storing c[rows, columns] with a row stride of
/// `stride` and a canary behind every row.
inline std::vector<float> run_store(const GemmKernels& kernels, TileFunction function, DType dtype,
                                    const GemmCase& gemm, std::int64_t columns, std::int64_t chunk,
                                    const Adjustment& adjustment = {}) {
  constexpr float kCanary = -77.0F;
  const std::int64_t stride = columns + 3;
  std::vector<float> c(static_cast<std::size_t>(gemm.rows * stride), kCanary);
  std::vector<float> partial(static_cast<std::size_t>(gemm.rows * gemm.columns));
  TileArgs tile;
  tile.a = gemm.a.data();
  tile.b = gemm.b.data();
  tile.b_panel_stride = PackedMatrices::panel_bytes_for(kernels, dtype, gemm.padded);
  tile.depth = gemm.padded;
  tile.rows = gemm.rows;
  tile.partial = partial.data();
  tile.prefetch = gemm.b.data();
  tile.c = c.data();
  tile.c_stride = stride;
  tile.columns = columns;
  tile.bias = adjustment.bias;
  tile.row_scale = adjustment.row_scale;
  for (std::int64_t k = 0; k < gemm.padded; k += chunk) {
    tile.k_begin = k;
    tile.k_end = std::min(k + chunk, gemm.padded);
    function(tile);
  }
  return c;
}

/// The same with SwiGLU: the packed block [rows, act_depth] whose columns from act_column on are
/// written; the rest keeps a canary of 0x55 bytes.
inline std::vector<char> run_swiglu(const GemmKernels& kernels, TileFunction function, DType dtype,
                                    const GemmCase& gemm, std::int64_t act_column,
                                    std::int64_t act_depth) {
  std::vector<char> act(
      static_cast<std::size_t>(gemm.rows * act_depth * row_element_bytes(kernels.row_layout)),
      0x55);
  TileArgs tile;
  tile.a = gemm.a.data();
  tile.b = gemm.b.data();
  tile.b_panel_stride = PackedMatrices::panel_bytes_for(kernels, dtype, gemm.padded);
  tile.depth = gemm.padded;
  tile.k_end = gemm.padded;
  tile.rows = gemm.rows;
  tile.prefetch = gemm.b.data();
  tile.epilogue = Epilogue::kSwiGlu;
  tile.act = act.data();
  tile.act_column = act_column;
  tile.act_depth = act_depth;
  function(tile);
  return act;
}

}  // namespace moe::cpu
