// Names of kernels, and what records add up to, on records made by hand.
#include <gtest/gtest.h>

#include "cuda/activity_records.h"

namespace moe::cuda {
namespace {

TEST(ShortKernelName, LeavesWhatTellsKernelsApart) {
  // void moe::cuda::(anonymous namespace)::combine_kernel<__nv_bfloat16, 8>(…)
  EXPECT_EQ(short_kernel_name(
                "_ZN3moe4cuda12_GLOBAL__N_114combine_kernelI13__nv_bfloat16Li8EEEvPKT_PKfPS4_l"),
            "combine_kernel<bf16, 8>");
  // moe::cuda::(anonymous namespace)::probe_kernel()
  EXPECT_EQ(short_kernel_name("_ZN3moe4cuda12_GLOBAL__N_112probe_kernelEv"), "probe_kernel");
  // As nvcc mangles an anonymous namespace.
  EXPECT_EQ(
      short_kernel_name("_ZN3moe4cuda41_GLOBAL__N__913ff368_9_swiglu_cu_b097f3ab18elementwise_"
                        "kernelIfLi4ENS1_4SiluEEEvPKT_S6_lPS4_"),
      "elementwise_kernel<float, 4, Silu>");
  // A library's C name stays as it is.
  EXPECT_EQ(short_kernel_name("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT"),
            "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT");
  // void cutlass::Kernel2<cutlass_80_tensorop>(cutlass_80_tensorop::Params)
  EXPECT_EQ(short_kernel_name("_ZN7cutlass7Kernel2I19cutlass_80_tensoropEEvNT_6ParamsE"),
            "cutlass::Kernel2<cutlass_80_tensorop>");
  // A function-pointer parameter inside the template arguments: void apply<&(twice(int))>(int*)
  EXPECT_EQ(short_kernel_name("_Z5applyIXadL_Z5twiceiEEEvPi"), "apply<&(twice(int))>");
  EXPECT_EQ(short_kernel_name(""), "");
}

TEST(ShortKernelName, CutsLongNamesInTheMiddle) {
  const std::string one = "a" + std::string(200, 'x') + "_tail_one";
  const std::string other = "a" + std::string(200, 'x') + "_tail_two";
  EXPECT_EQ(short_kernel_name(one.c_str()).size(), 96U);
  EXPECT_NE(short_kernel_name(one.c_str()), short_kernel_name(other.c_str()));
  EXPECT_NE(short_kernel_name(one.c_str()).find("x...x"), std::string::npos);
}

KernelRecord record(const char* name, std::int64_t start_us, std::int64_t end_us,
                    std::uint64_t id = 0) {
  KernelRecord result;
  result.name = name;
  result.start_ns = start_us * 1000;
  result.end_ns = end_us * 1000;
  result.external_id = id;
  return result;
}

TEST(Summarise, NothingIsNothing) {
  const ActivitySummary summary = summarise({});
  EXPECT_EQ(summary.repetitions, 0);
  EXPECT_TRUE(summary.kernels.empty());
  EXPECT_EQ(summary.span_us, 0);
  EXPECT_EQ(summary.largest_gap_before, "");
}

TEST(Summarise, AddsUpSharesAndGaps) {
  // gemm 0..10 and 14..16, gate 17..21; the order given is not by time.
  const ActivitySummary summary =
      summarise({record("gate", 17, 21), record("gemm", 0, 10), record("gemm", 14, 16)});
  EXPECT_EQ(summary.repetitions, 1);
  ASSERT_EQ(summary.kernels.size(), 2U);
  EXPECT_EQ(summary.kernels[0].name, "gemm");
  EXPECT_DOUBLE_EQ(summary.kernels[0].launches, 2);
  EXPECT_DOUBLE_EQ(summary.kernels[0].microseconds, 12);
  EXPECT_DOUBLE_EQ(summary.kernels[0].share, 0.75);
  EXPECT_EQ(summary.kernels[1].name, "gate");
  EXPECT_DOUBLE_EQ(summary.kernels[1].share, 0.25);
  EXPECT_DOUBLE_EQ(summary.launches, 3);
  EXPECT_DOUBLE_EQ(summary.span_us, 21);
  EXPECT_DOUBLE_EQ(summary.busy_us, 16);
  EXPECT_DOUBLE_EQ(summary.gap_us, 5);
  EXPECT_DOUBLE_EQ(summary.overlap_us, 0);
  EXPECT_DOUBLE_EQ(summary.largest_gap_us, 4);
  EXPECT_EQ(summary.largest_gap_before, "gemm");
}

TEST(Summarise, TimeThatOverlapsIsBusyOnce) {
  // long 0..20 covers both others; tail 18..25 reaches beyond.
  const ActivitySummary summary =
      summarise({record("long", 0, 20), record("inner", 5, 9), record("tail", 18, 25)});
  EXPECT_DOUBLE_EQ(summary.span_us, 25);
  EXPECT_DOUBLE_EQ(summary.busy_us, 25);
  EXPECT_DOUBLE_EQ(summary.gap_us, 0);
  EXPECT_DOUBLE_EQ(summary.overlap_us, 20 + 4 + 7 - 25);
  EXPECT_EQ(summary.largest_gap_before, "");
}

TEST(Summarise, RepetitionsAreMeansAndTheTimeBetweenThemIsNobodys) {
  std::vector<KernelRecord> records = {record("gemm", 0, 10, 1), record("copy", 12, 14, 1),
                                       record("gemm", 1000, 1020, 2),
                                       record("copy", 1028, 1030, 2)};
  records[1].kind = records[3].kind = ActivityKind::kMemcpy;
  records[1].bytes = 100;
  records[3].bytes = 300;
  const ActivitySummary summary = summarise(records);
  EXPECT_EQ(summary.repetitions, 2);
  EXPECT_DOUBLE_EQ(summary.launches, 2);
  EXPECT_DOUBLE_EQ(summary.span_us, (14 + 30) / 2.0);
  EXPECT_DOUBLE_EQ(summary.busy_us, (12 + 22) / 2.0);
  EXPECT_DOUBLE_EQ(summary.gap_us, (2 + 8) / 2.0);
  EXPECT_DOUBLE_EQ(summary.largest_gap_us, 8);
  EXPECT_EQ(summary.largest_gap_before, "copy");
  ASSERT_EQ(summary.kernels.size(), 2U);
  EXPECT_DOUBLE_EQ(summary.kernels[0].microseconds, 15);
  EXPECT_DOUBLE_EQ(summary.kernels[0].launches, 1);
  EXPECT_EQ(summary.kernels[1].kind, ActivityKind::kMemcpy);
  EXPECT_DOUBLE_EQ(summary.kernels[1].bytes, 200);
  EXPECT_DOUBLE_EQ(summary.kernels[0].share + summary.kernels[1].share, 1);
}

}  // namespace
}  // namespace moe::cuda
