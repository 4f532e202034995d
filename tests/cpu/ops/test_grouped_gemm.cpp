// Grouped products: tasks cover every panel of every row exactly once, values match fp64 whatever
// the choice of tiles, and offsets beyond 2^31 elements hold.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/workload.h"
#include "cpu/ops/grouped_gemm.h"
#include "isa_and_dtype.h"

namespace moe::cpu {
namespace {

std::vector<std::int64_t> offsets_of(const std::vector<std::int64_t>& rows) {
  std::vector<std::int64_t> offsets = {0};
  for (const std::int64_t count : rows) offsets.push_back(offsets.back() + count);
  return offsets;
}

TEST(TileChoices, RangesCoverEveryRowCountOnce) {
  int range = 0;
  for (std::int64_t rows = 1; rows < 2000; ++rows) {
    if (rows > TileChoices::last_row_of(range)) ++range;
    ASSERT_EQ(TileChoices::range_of(rows), range) << rows;
    ASSERT_GE(rows, TileChoices::first_row_of(range));
  }
  EXPECT_EQ(range, TileChoices::kRanges - 1);
}

class GroupedProducts : public IsaAndDType {};
MOE_INSTANTIATE_ISA_AND_DTYPE(GroupedProducts);

TEST_P(GroupedProducts, HeuristicOnlyUsesShapesOfTheTable) {
  const TileChoices choices = TileChoices::defaults(gemm(), dtype());
  for (const TileChoice& choice : choices.choices) {
    const TileShape* end = gemm().shapes + gemm().shape_count;
    EXPECT_NE(std::find(gemm().shapes, end, choice.shape), end);
    EXPECT_EQ(choice.chunk % gemm().depth_multiple, 0);
  }
}

/// One grouped product with SwiGLU-free epilogue, all choices set to `choice`.
class Product {
 public:
  Product(const GemmKernels& kernels, DType dtype, const std::vector<std::int64_t>& rows,
          std::int64_t depth, std::int64_t columns)
      : kernels_(kernels),
        dtype_(dtype),
        rows_(rows),
        offsets_(offsets_of(rows)),
        depth_(depth),
        columns_(columns),
        padded_((depth + kernels.depth_multiple - 1) / kernels.depth_multiple *
                kernels.depth_multiple),
        x_(offsets_.back() * depth, dtype, 1, 1.0),
        w_(static_cast<std::int64_t>(rows.size()) * columns * depth, dtype, 2, 1.0),
        x_tensor_(dtype, {std::max<std::int64_t>(offsets_.back(), 1), depth}),
        w_tensor_(dtype, {static_cast<std::int64_t>(rows.size()), columns, depth}) {
    const auto bytes = [&](const Tensor& tensor) { return tensor.view().bytes(); };
    if (offsets_.back() > 0) std::memcpy(x_tensor_.view().data, x_.at(dtype, 0), bytes(x_tensor_));
    std::memcpy(w_tensor_.view().data, w_.at(dtype, 0), bytes(w_tensor_));
    packed_ = PackedMatrices::pack(kernels, w_tensor_.view(), padded_, 2);
  }

  void expect_exact(const TileChoice& choice, int threads) {
    TileChoices choices;
    std::fill(std::begin(choices.choices), std::end(choices.choices), choice);
    expect_exact(choices, threads);
  }

  void expect_exact(const TileChoices& choices, int threads) {
    const auto experts = static_cast<std::int64_t>(rows_.size());
    const RowGroups groups{offsets_.data(), experts, &choices};
    std::vector<char> a(static_cast<std::size_t>(offsets_.back() * padded_ *
                                                 row_element_bytes(kernels_.row_layout)));
    for (int part = 0; part < 3; ++part) {
      pack_groups(kernels_, groups, x_tensor_.view(), nullptr, padded_, part, 3, a.data());
    }
    std::vector<ExpertTasks> tasks(rows_.size() + 1);
    plan_tasks(groups, packed_.panels(), threads, tasks.data());
    std::vector<float> c(static_cast<std::size_t>(offsets_.back() * columns_), std::nanf(""));
    const GroupedGemm gemm{.kernels = &kernels_,
                           .weights = &packed_,
                           .groups = groups,
                           .tasks = tasks.data(),
                           .a = a.data(),
                           .epilogue = Epilogue::kStore,
                           .c = c.data(),
                           .c_columns = columns_};
    std::atomic<std::int64_t> counter{0};
#pragma omp parallel num_threads(threads)
    run_tasks(gemm, counter);
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      for (std::int64_t row = offsets_[static_cast<std::size_t>(expert)];
           row < offsets_[static_cast<std::size_t>(expert + 1)]; ++row) {
        for (std::int64_t column = 0; column < columns_; ++column) {
          double sum = 0;
          double magnitude = 0;
          for (std::int64_t k = 0; k < depth_; ++k) {
            const double term =
                static_cast<double>(x_.f32[static_cast<std::size_t>(row * depth_ + k)]) *
                w_.f32[static_cast<std::size_t>((expert * columns_ + column) * depth_ + k)];
            sum += term;
            magnitude += std::fabs(term);
          }
          const double got = c[static_cast<std::size_t>(row * columns_ + column)];
          ASSERT_LE(std::fabs(got - sum), magnitude * static_cast<double>(depth_ + 2) * 0x1p-24)
              << "expert " << expert << " row " << row << " column " << column;
        }
      }
    }
  }

 private:
  const GemmKernels& kernels_;
  DType dtype_;
  std::vector<std::int64_t> rows_, offsets_;
  std::int64_t depth_, columns_, padded_;
  Values x_, w_;
  Tensor x_tensor_, w_tensor_;
  PackedMatrices packed_;
};

TEST_P(GroupedProducts, EveryChoiceMatchesFp64) {
  // Empty first, middle and last experts, one row, rows around the tile heights, one large expert.
  Product product(gemm(), dtype(), {0, 1, 0, 13, 5, 100, 2, 0}, 150, 71);
  for (int index = 0; index < gemm().shape_count; ++index) {
    for (const std::int64_t chunk : {0, 64, 128}) {
      for (const bool prefetch : {false, true}) {
        for (const std::int64_t row_part : {0, 30}) {
          const TileChoice choice{.shape = gemm().shapes[index],
                                  .chunk = chunk,
                                  .prefetch = prefetch,
                                  .row_part = row_part,
                                  .tasks_per_thread = row_part == 0 ? 24 : 1};
          SCOPED_TRACE(testing::Message()
                       << choice.shape.rows << "x" << choice.shape.panels << " chunk " << chunk
                       << " prefetch " << prefetch << " row part " << row_part);
          product.expect_exact(choice, 2);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(GroupedProducts, HeuristicMatchesFp64AtAnyThreadCount) {
  const TileChoices choices = TileChoices::defaults(gemm(), dtype());
  const std::vector<std::vector<std::int64_t>> row_counts = {{1},   {0},          {0, 0, 3},
                                                             {600}, {17, 33, 49}, {1, 1, 1, 1, 1}};
  for (const auto& rows : row_counts) {
    Product product(gemm(), dtype(), rows, 33, 40);
    for (const int threads : {1, 2, 5}) {
      product.expect_exact(choices, threads);
      if (HasFatalFailure()) return;
    }
  }
}

/// One column and one depth: more threads than work.
TEST_P(GroupedProducts, SmallestProduct) {
  Product product(gemm(), dtype(), {1}, 1, 1);
  product.expect_exact(TileChoices::defaults(gemm(), dtype()), 4);
}

TEST_P(GroupedProducts, TasksAreEnoughForAllThreadsWhenOneExpertHasAllRows) {
  const TileChoices choices = TileChoices::defaults(gemm(), dtype());
  for (const std::int64_t panels : {1, 2, 64}) {
    const auto offsets = offsets_of({0, 2048, 0});
    const RowGroups groups{offsets.data(), 3, &choices};
    std::vector<ExpertTasks> tasks(4);
    plan_tasks(groups, panels, 16, tasks.data());
    EXPECT_GE(tasks[3].first_task, 32) << panels << " panels";
  }
}

/// Rows beyond 2^31 elements of C and of A: the buffers are reserved, only the pages of the last rows
/// are touched.
TEST_P(GroupedProducts, OffsetsBeyond2To31Elements) {
  constexpr std::int64_t kDepth = 2048;
  constexpr std::int64_t kColumns = 2048;
  constexpr std::int64_t kFirstRow = (std::int64_t{1} << 31) / kDepth + 5;
  constexpr std::int64_t kRows = 3;
  const Values x(kRows * kDepth, dtype(), 1, 1.0);
  const Values w(kColumns * kDepth, dtype(), 2, 1.0);
  Tensor weights(dtype(), {1, kColumns, kDepth});
  std::memcpy(weights.view().data, w.at(dtype(), 0), weights.view().bytes());
  const PackedMatrices packed = PackedMatrices::pack(gemm(), weights.view(), kDepth, 2);

  const std::int64_t element = row_element_bytes(gemm().row_layout);
  const HostBuffer a(static_cast<std::size_t>((kFirstRow + kRows) * kDepth * element));
  const HostBuffer c(static_cast<std::size_t>((kFirstRow + kRows) * kColumns * 4));
  std::vector<const void*> rows;
  for (std::int64_t row = 0; row < kRows; ++row) rows.push_back(x.at(dtype(), row * kDepth));
  pack_rows(gemm().row_layout, dtype(), rows.data(), kRows, kDepth, kDepth,
            a.as<char>() + kFirstRow * kDepth * element);

  const std::int64_t offsets[] = {kFirstRow, kFirstRow + kRows};
  const TileChoices choices = TileChoices::defaults(gemm(), dtype());
  const RowGroups groups{offsets, 1, &choices};
  ExpertTasks tasks[2];
  plan_tasks(groups, packed.panels(), 2, tasks);
  const GroupedGemm product{.kernels = &gemm(),
                            .weights = &packed,
                            .groups = groups,
                            .tasks = tasks,
                            .a = a.data(),
                            .epilogue = Epilogue::kStore,
                            .c = c.as<float>(),
                            .c_columns = kColumns};
  std::atomic<std::int64_t> counter{0};
  run_tasks(product, counter);
  for (const std::int64_t column : {0L, 1L, 1000L, kColumns - 1}) {
    for (std::int64_t row = 0; row < kRows; ++row) {
      double sum = 0;
      double magnitude = 0;
      for (std::int64_t k = 0; k < kDepth; ++k) {
        const double term = static_cast<double>(x.f32[static_cast<std::size_t>(row * kDepth + k)]) *
                            w.f32[static_cast<std::size_t>(column * kDepth + k)];
        sum += term;
        magnitude += std::fabs(term);
      }
      const double got = c.as<float>()[(kFirstRow + row) * kColumns + column];
      EXPECT_LE(std::fabs(got - sum), magnitude * (kDepth + 2) * 0x1p-24) << row << ' ' << column;
    }
  }
}

}  // namespace
}  // namespace moe::cpu
