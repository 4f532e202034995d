// The reference's only inner loop: one stored row against a few rows of doubles.
#pragma once

#include <cstdint>
#include <vector>

#include "core/dispatch.h"
#include "core/scalar.h"
#include "moe/tensor.h"

namespace moe::reference {

/// Rows handled together; their additions are independent, so that one chain of fp64 additions does
/// not decide how long a check takes. Each row is still summed in order.
inline constexpr int kBlockRows = 8;

/// Below this many multiply-adds starting threads takes longer than the work.
inline constexpr std::int64_t kParallelWork = 1 << 17;

/// Up to kBlockRows rows of n values, and for each value the coefficient of the error sum below.
struct Block {
  int rows = 0;
  std::int64_t length = 0;
  std::vector<double> values;        // [n, width]
  std::vector<double> coefficients;  // [n, width]

  Block(int row_count, std::int64_t n)
      : rows(row_count), length(n), values(size(row_count, n)), coefficients(size(row_count, n)) {}
  /// Rows as stored: the next of 1, 2, 4, 8. The rows beyond `rows` are zero.
  [[nodiscard]] int width() const { return width_of(rows); }
  static constexpr int width_of(int rows) { return rows > 4 ? 8 : rows > 2 ? 4 : rows; }

 private:
  static std::size_t size(int rows, std::int64_t n) {
    return static_cast<std::size_t>(n) * static_cast<std::size_t>(width_of(rows));
  }
};

/// sums[r] = Σ_j stored[j]·values[j,r] and errors[r] = Σ_j stored[j]²·coefficients[j,r].
template <int kWidth, class Element>
void dot_block_of(const Element* stored, const Block& block, double* sums, double* errors) {
  double sum[kWidth] = {};
  double error[kWidth] = {};
  for (std::int64_t j = 0; j < block.length; ++j) {
    const double weight = to_float(stored[j]);
    const double* value = block.values.data() + j * kWidth;
    const double* coefficient = block.coefficients.data() + j * kWidth;
    for (int r = 0; r < kWidth; ++r) {
      sum[r] += weight * value[r];
      error[r] += weight * weight * coefficient[r];
    }
  }
  for (int r = 0; r < kWidth; ++r) {
    sums[r] = sum[r];
    errors[r] = error[r];
  }
}

/// The same for row `row` of a matrix of `block.length` columns, of whichever type it is stored in.
inline void dot_block(const TensorView& matrix, std::int64_t row, const Block& block, double* sums,
                      double* errors) {
  with_element_type(matrix.dtype, [&]<class Element>() {
    const Element* stored = matrix.as<const Element>() + row * block.length;
    switch (block.width()) {
      case 1:
        return dot_block_of<1>(stored, block, sums, errors);
      case 2:
        return dot_block_of<2>(stored, block, sums, errors);
      case 4:
        return dot_block_of<4>(stored, block, sums, errors);
      default:
        return dot_block_of<8>(stored, block, sums, errors);
    }
  });
}

/// Rows rows[first..first+count) of x as doubles, with their squares as coefficients: dot_block
/// then also gives Σ p² of the products p.
inline Block load_rows(const TensorView& x, const std::int64_t* rows, int count) {
  const std::int64_t length = x.dim(1);
  Block block(count, length);
  const int width = block.width();
  with_element_type(x.dtype, [&]<class Element>() {
    for (int r = 0; r < count; ++r) {
      const Element* row = x.as<const Element>() + rows[r] * length;
      for (std::int64_t j = 0; j < length; ++j) {
        const double value = to_float(row[j]);
        const auto at = static_cast<std::size_t>(j * width + r);
        block.values[at] = value;
        block.coefficients[at] = value * value;
      }
    }
  });
  return block;
}

}  // namespace moe::reference
