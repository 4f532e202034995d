// Packing and reading back gives the same values, and zero where nothing was stored.
#include <gtest/gtest.h>

#include <vector>

#include "core/workload.h"
#include "cpu/isa/kernels.h"
#include "cpu/ops/pack.h"
#include "isa_and_dtype.h"

namespace moe::cpu {
namespace {

class Pack : public IsaAndDType {};
MOE_INSTANTIATE_ISA_AND_DTYPE(Pack);

/// Element (matrix, row, k) of a stored tensor in fp32.
float stored(const TensorView& tensor, std::int64_t matrix, std::int64_t row, std::int64_t k) {
  const std::int64_t index = (matrix * tensor.dim(1) + row) * tensor.dim(2) + k;
  return tensor.dtype == DType::kF32 ? tensor.as<float>()[index]
                                     : to_float(tensor.as<BFloat16>()[index]);
}

/// Element (k, column) of a panel.
float panel_value(const char* panel, DType dtype, std::int64_t width, std::int64_t k,
                  std::int64_t column) {
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(panel)[k * width + column];
  return to_float(reinterpret_cast<const BFloat16*>(panel)[(k / 2 * width + column) * 2 + k % 2]);
}

TEST_P(Pack, RowsRoundTrip) {
  for (const std::int64_t depth : {1, 2, 15, 16, 17, 33, 100}) {
    for (const int count : {1, 3, 12, 31, 32}) {
      const Values values(count * depth, dtype(), 3, 1.0);
      std::vector<const void*> rows;
      for (int row = 0; row < count; ++row) {
        rows.push_back(row == 2 ? nullptr : values.at(dtype(), row * depth));
      }
      const std::int64_t multiple = gemm().depth_multiple;
      const std::int64_t padded = (depth + multiple - 1) / multiple * multiple + multiple;
      std::vector<char> block(
          static_cast<std::size_t>(count * padded * row_element_bytes(gemm().row_layout)), 0x55);
      pack_rows(gemm().row_layout, dtype(), rows.data(), count, depth, padded, block.data());
      for (int row = 0; row < count; ++row) {
        for (std::int64_t k = 0; k < padded; ++k) {
          const float expected =
              k < depth && row != 2 ? values.f32[static_cast<std::size_t>(row * depth + k)] : 0.0F;
          ASSERT_EQ(block_value(block.data(), gemm().row_layout, count, padded, row, k), expected)
              << "row " << row << " of " << count << ", k " << k << " of " << depth;
        }
      }
    }
  }
}

TEST_P(Pack, WeightsRoundTrip) {
  const Problem problem{{.tokens = 1, .hidden = 37, .intermediate = 21, .experts = 3, .top_k = 1},
                        dtype()};
  const OwnedWeights weights = make_weights(problem, 1);
  const std::int64_t multiple = gemm().depth_multiple;
  const std::int64_t padded = (37 + multiple - 1) / multiple * multiple;
  const int width = gemm().panel_columns();
  for (const int threads : {1, 3}) {
    const PackedMatrices gate_up =
        PackedMatrices::pack_gate_up(gemm(), ExpertSet(problem, weights.view()), padded, threads);
    EXPECT_EQ(gate_up.panels() * gemm().lanes % multiple, 0) << "act must fill whole steps";
    for (std::int64_t expert = 0; expert < 3; ++expert) {
      for (std::int64_t panel = 0; panel < gate_up.panels(); ++panel) {
        for (std::int64_t k = 0; k < padded; ++k) {
          for (std::int64_t column = 0; column < width; ++column) {
            const TensorView& source =
                column < gemm().lanes ? weights.gate.view() : weights.up.view();
            const std::int64_t i = panel * gemm().lanes + column % gemm().lanes;
            const float expected = i < 21 && k < 37 ? stored(source, expert, i, k) : 0.0F;
            ASSERT_EQ(panel_value(gate_up.panel(expert, panel), dtype(), width, k, column),
                      expected)
                << expert << ' ' << panel << ' ' << k << ' ' << column;
          }
        }
      }
    }
    const std::int64_t act_depth = gate_up.panels() * gemm().lanes;
    const PackedMatrices down =
        PackedMatrices::pack_down(gemm(), ExpertSet(problem, weights.view()), act_depth, threads);
    for (std::int64_t expert = 0; expert < 3; ++expert) {
      for (std::int64_t panel = 0; panel < down.panels(); ++panel) {
        for (std::int64_t k = 0; k < act_depth; ++k) {
          for (std::int64_t column = 0; column < width; ++column) {
            const std::int64_t h = panel * width + column;
            const float expected = h < 37 && k < 21 ? stored(weights.down.view(), expert, h, k) : 0;
            ASSERT_EQ(panel_value(down.panel(expert, panel), dtype(), width, k, column), expected)
                << expert << ' ' << panel << ' ' << k << ' ' << column;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace moe::cpu
