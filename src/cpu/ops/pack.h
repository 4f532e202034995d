// Packing: rows and weight matrices into the blocks and panels that the GEMM tiles read
// (cpu/isa/gemm_tile.h).
#pragma once

#include <cstdint>

#include "core/expert_set.h"
#include "core/memory.h"
#include "cpu/isa/gemm_tile.h"
#include "moe/tensor.h"

namespace moe::cpu {

/// Bytes of one value in a packed block of rows.
[[nodiscard]] constexpr std::int64_t row_element_bytes(RowLayout layout) {
  return layout == RowLayout::kColumns ? 4 : 2;
}

/// Most rows that pack_rows takes at once: columns of the widest panel, rows of the tallest tile.
inline constexpr int kMaxPackedRows = 32;

/// Packs rows[0..count) of `depth` elements of type `from` into one block of `padded_depth`, the rest
/// zero. A null row is all zeros. bf16 rows in kColumns are expanded to fp32. A panel of weights is
/// a block whose rows are the weights of its columns, so this packs both sides.
void pack_rows(RowLayout layout, DType from, const void* const* rows, int count, std::int64_t depth,
               std::int64_t padded_depth, void* out);

/// Equally sized matrices in panels: panel p of matrix m is at panel(m, p), panels of one matrix and
/// matrices are adjacent.
class PackedMatrices {
 public:
  PackedMatrices() = default;

  /// [matrices, columns, depth] as stored, padded to `padded_depth`.
  static PackedMatrices pack(const GemmKernels& kernels, const TensorView& weights,
                             std::int64_t padded_depth, int threads);
  /// gate and up of all experts, interleaved by half panels; without a gate matrix up alone, in whole
  /// panels. Panels are added until their act columns fill a multiple of depth_multiple: they are the
  /// depth of the next product.
  static PackedMatrices pack_gate_up(const GemmKernels& kernels, const ExpertSet& experts,
                                     std::int64_t padded_depth, int threads);
  /// down of all experts.
  static PackedMatrices pack_down(const GemmKernels& kernels, const ExpertSet& experts,
                                  std::int64_t padded_depth, int threads);

  /// Panels of a matrix with `columns` columns; of a gate-up pair with `columns` each, or of up alone.
  static std::int64_t panels_for(const GemmKernels& kernels, std::int64_t columns);
  static std::int64_t gate_up_panels_for(const GemmKernels& kernels, std::int64_t columns,
                                         bool gated);
  /// Columns of act that those panels make.
  static std::int64_t act_columns_for(const GemmKernels& kernels, std::int64_t columns, bool gated);
  static std::int64_t panel_bytes_for(const GemmKernels& kernels, DType dtype,
                                      std::int64_t padded_depth);

  /// Bytes of the buffer of all matrices: whole pages, and whole huge pages where that adds at most an
  /// eighth. The last matrix would lie in small pages else; it may be the shared expert, which every
  /// token reads.
  static std::size_t buffer_bytes_for(std::int64_t matrices, std::int64_t panels,
                                      std::int64_t panel_bytes);

  [[nodiscard]] const char* panel(std::int64_t matrix, std::int64_t index) const {
    return buffer_.as<const char>() + (matrix * panels_ + index) * panel_bytes_;
  }
  [[nodiscard]] std::int64_t matrices() const { return matrices_; }
  [[nodiscard]] std::int64_t panels() const { return panels_; }
  [[nodiscard]] std::int64_t panel_bytes() const { return panel_bytes_; }
  [[nodiscard]] std::int64_t depth() const { return depth_; }  ///< padded
  [[nodiscard]] std::size_t bytes() const { return buffer_.size(); }

 private:
  /// A column of weights as stored; all zero where `values` is null.
  struct Column {
    const void* values = nullptr;
    std::int64_t depth = 0;
  };
  /// Panels whose columns `source(matrix, panel, column of the panel)` tells. All columns of a matrix
  /// have one depth.
  template <class Source>
  void fill(const GemmKernels& kernels, DType dtype, int threads, const Source& source);

  PackedMatrices(std::int64_t matrices, std::int64_t panels, std::int64_t panel_bytes,
                 std::int64_t depth);

  HostBuffer buffer_;
  std::int64_t matrices_ = 0;
  std::int64_t panels_ = 0;
  std::int64_t panel_bytes_ = 0;
  std::int64_t depth_ = 0;
};

}  // namespace moe::cpu
