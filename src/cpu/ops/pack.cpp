#include "cpu/ops/pack.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/scalar.h"

namespace moe::cpu {
namespace {

/// Depth handled per pass over the rows: one cache line of each row at a time. Rows lie at a stride
/// that is often a power of two, so a line would be evicted before its second visit otherwise.
constexpr std::int64_t kLineBytes = 64;

std::uint32_t bits_of(const void* from, std::int64_t index) {
  std::uint32_t value = 0;
  std::memcpy(&value, static_cast<const char*>(from) + index * 4, sizeof(value));
  return value;
}

/// out[k][count] of 32-bit words, words of the rows unchanged.
void pack_words(const void* const* rows, int count, std::int64_t words, std::uint32_t* out) {
  constexpr std::int64_t kWords = kLineBytes / 4;
  for (std::int64_t begin = 0; begin < words; begin += kWords) {
    const std::int64_t end = std::min(begin + kWords, words);
    for (int row = 0; row < count; ++row) {
      std::uint32_t* to = out + begin * count + row;
      if (rows[row] == nullptr) {
        for (std::int64_t k = begin; k < end; ++k, to += count) *to = 0;
      } else {
        for (std::int64_t k = begin; k < end; ++k, to += count) *to = bits_of(rows[row], k);
      }
    }
  }
}

/// out[k][count] in fp32 from bf16 rows.
void pack_expanded(const void* const* rows, int count, std::int64_t depth, float* out) {
  constexpr std::int64_t kValues = kLineBytes / 2;
  for (std::int64_t begin = 0; begin < depth; begin += kValues) {
    const std::int64_t end = std::min(begin + kValues, depth);
    for (int row = 0; row < count; ++row) {
      const auto* from = static_cast<const BFloat16*>(rows[row]);
      float* to = out + begin * count + row;
      for (std::int64_t k = begin; k < end; ++k, to += count) {
        *to = from == nullptr ? 0.0F : to_float(from[k]);
      }
    }
  }
}

}  // namespace

void pack_rows(RowLayout layout, DType from, const void* const* rows, int count, std::int64_t depth,
               std::int64_t padded_depth, void* out) {
  switch (layout) {
    case RowLayout::kColumns: {
      auto* to = static_cast<float*>(out);
      if (from == DType::kF32) {
        pack_words(rows, count, depth, static_cast<std::uint32_t*>(out));
      } else {
        pack_expanded(rows, count, depth, to);
      }
      std::fill(to + depth * count, to + padded_depth * count, 0.0F);
      return;
    }
    case RowLayout::kPairs: {
      auto* to = static_cast<std::uint32_t*>(out);
      pack_words(rows, count, depth / 2, to);
      std::int64_t pairs = depth / 2;
      if (depth % 2 != 0) {
        for (int row = 0; row < count; ++row) {
          const auto* from_row = static_cast<const BFloat16*>(rows[row]);
          to[pairs * count + row] = from_row == nullptr ? 0U : from_row[depth - 1].bits;
        }
        ++pairs;
      }
      std::fill(to + pairs * count, to + padded_depth / 2 * count, 0U);
      return;
    }
    case RowLayout::kRows: {
      auto* to = static_cast<BFloat16*>(out);
      for (int row = 0; row < count; ++row, to += padded_depth) {
        std::int64_t filled = 0;
        if (rows[row] != nullptr) {
          std::memcpy(to, rows[row], static_cast<std::size_t>(depth) * sizeof(BFloat16));
          filled = depth;
        }
        std::fill(to + filled, to + padded_depth, BFloat16{});
      }
      return;
    }
  }
}

PackedMatrices::PackedMatrices(std::int64_t matrices, std::int64_t panels, std::int64_t panel_bytes,
                               std::int64_t depth)
    : buffer_(buffer_bytes_for(matrices, panels, panel_bytes)),
      matrices_(matrices),
      panels_(panels),
      panel_bytes_(panel_bytes),
      depth_(depth) {}

std::size_t PackedMatrices::buffer_bytes_for(std::int64_t matrices, std::int64_t panels,
                                             std::int64_t panel_bytes) {
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const auto bytes = static_cast<std::size_t>(matrices * panels * panel_bytes);
  const std::size_t huge = round_up(bytes, kHugePage);
  return huge - bytes <= bytes / 8 ? huge : HostBuffer::footprint(bytes);
}

std::int64_t PackedMatrices::panels_for(const GemmKernels& kernels, std::int64_t columns) {
  const std::int64_t width = kernels.panel_columns();
  return (columns + width - 1) / width;
}

std::int64_t PackedMatrices::gate_up_panels_for(const GemmKernels& kernels, std::int64_t columns,
                                                bool gated) {
  const std::int64_t per_panel = gated ? kernels.lanes : kernels.panel_columns();
  const std::int64_t unit = std::max<std::int64_t>(per_panel, kernels.depth_multiple);
  return (columns + unit - 1) / unit * (unit / per_panel);
}

std::int64_t PackedMatrices::act_columns_for(const GemmKernels& kernels, std::int64_t columns,
                                             bool gated) {
  return gate_up_panels_for(kernels, columns, gated) *
         (gated ? kernels.lanes : kernels.panel_columns());
}

std::int64_t PackedMatrices::panel_bytes_for(const GemmKernels& kernels, DType dtype,
                                             std::int64_t padded_depth) {
  return padded_depth * kernels.panel_columns() * static_cast<std::int64_t>(size_of(dtype));
}

template <class Source>
void PackedMatrices::fill(const GemmKernels& kernels, DType dtype, int threads,
                          const Source& source) {
  const int width = kernels.panel_columns();
  const RowLayout layout = dtype == DType::kF32 ? RowLayout::kColumns : RowLayout::kPairs;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t unit = 0; unit < matrices_ * panels_; ++unit) {
    std::array<const void*, kMaxPackedRows> columns{};
    std::int64_t depth = 0;
    for (int i = 0; i < width; ++i) {
      const Column column = source(unit / panels_, unit % panels_, i);
      columns[static_cast<std::size_t>(i)] = column.values;
      if (column.values != nullptr) depth = column.depth;
    }
    pack_rows(layout, dtype, columns.data(), width, depth, depth_,
              buffer_.as<char>() + unit * panel_bytes_);
  }
}

PackedMatrices PackedMatrices::pack(const GemmKernels& kernels, const TensorView& weights,
                                    std::int64_t padded_depth, int threads) {
  PackedMatrices packed(weights.dim(0), panels_for(kernels, weights.dim(1)),
                        panel_bytes_for(kernels, weights.dtype, padded_depth), padded_depth);
  const auto row_bytes = weights.dim(2) * static_cast<std::int64_t>(size_of(weights.dtype));
  packed.fill(kernels, weights.dtype, threads,
              [&](std::int64_t matrix, std::int64_t panel, int at) -> Column {
                const std::int64_t column = panel * kernels.panel_columns() + at;
                if (column >= weights.dim(1)) return {};
                return {weights.as<const char>() + (matrix * weights.dim(1) + column) * row_bytes,
                        weights.dim(2)};
              });
  return packed;
}

PackedMatrices PackedMatrices::pack_gate_up(const GemmKernels& kernels, const ExpertSet& experts,
                                            std::int64_t padded_depth, int threads) {
  const Problem& problem = experts.problem();
  const bool gated = problem.activation.gated();
  const std::int64_t hidden = problem.shape.hidden;
  const std::int64_t row_bytes = hidden * static_cast<std::int64_t>(size_of(problem.dtype));
  const int half = gated ? kernels.lanes : kernels.panel_columns();
  PackedMatrices packed(experts.count(),
                        gate_up_panels_for(kernels, problem.shape.intermediate, gated),
                        panel_bytes_for(kernels, problem.dtype, padded_depth), padded_depth);
  packed.fill(kernels, problem.dtype, threads,
              [&](std::int64_t number, std::int64_t panel, int at) -> Column {
                const ExpertMatrices expert = experts.at(number);
                const std::int64_t column = panel * half + at % half;
                if (column >= expert.width) return {};
                const bool gate = gated && at < half;
                return {(gate ? expert.gate : expert.up) + column * row_bytes, hidden};
              });
  return packed;
}

PackedMatrices PackedMatrices::pack_down(const GemmKernels& kernels, const ExpertSet& experts,
                                         std::int64_t padded_depth, int threads) {
  const Problem& problem = experts.problem();
  const std::int64_t hidden = problem.shape.hidden;
  PackedMatrices packed(experts.count(), panels_for(kernels, hidden),
                        panel_bytes_for(kernels, problem.dtype, padded_depth), padded_depth);
  packed.fill(kernels, problem.dtype, threads,
              [&](std::int64_t number, std::int64_t panel, int at) -> Column {
                const ExpertMatrices expert = experts.at(number);
                const std::int64_t column = panel * kernels.panel_columns() + at;
                if (column >= hidden) return {};
                return {expert.down + column * expert.down_stride, expert.width};
              });
  return packed;
}

}  // namespace moe::cpu
