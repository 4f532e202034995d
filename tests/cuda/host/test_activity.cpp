// The activity recorder without a GPU: absence as a sentence, and a stand-in for libcupti where the
// build has CUPTI's headers.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include "cuda/activity.h"
#include "cuda/host/environment.h"
#include "moe/error.h"

namespace moe::cuda {
namespace {

TEST(ActivityRecorder, AbsenceIsASentence) {
  std::string reason;
  EXPECT_EQ(ActivityRecorder::open(reason, "libno-such-cupti.so.13"), nullptr);
  EXPECT_EQ(reason.rfind("no CUPTI: ", 0), 0U) << reason;
  EXPECT_EQ(reason.find('\n'), std::string::npos);
}

#ifdef FAKE_CUPTI

TEST(ActivityRecorder, AnotherLibraryIsNotCupti) {
  std::string reason;
  EXPECT_EQ(ActivityRecorder::open(reason, "libm.so.6"), nullptr);
  EXPECT_EQ(reason, "no CUPTI: libm.so.6 lacks functions of the activity API");
}

TEST(ActivityRecorder, ADriverThatForbidsRecordingSaysSo) {
  const Environment fails("FAKE_CUPTI_ENABLE", "35");
  std::string reason;
  EXPECT_EQ(ActivityRecorder::open(reason, FAKE_CUPTI), nullptr);
  EXPECT_EQ(reason,
            "CUPTI (" FAKE_CUPTI ") cannot record here: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES");
}

std::vector<KernelRecord> record_the_script(ActivityRecorder& recorder) {
  recorder.start();
  recorder.mark(11);
  recorder.mark(12);
  return recorder.stop();
}

TEST(ActivityRecorder, RecordsWithTheirMarksByTime) {
  std::string reason = "left over";
  const auto recorder = ActivityRecorder::open(reason, FAKE_CUPTI);
  ASSERT_NE(recorder, nullptr) << reason;
  EXPECT_EQ(reason, "");
  EXPECT_EQ(recorder->library_path(), FAKE_CUPTI);
  for (int repetition = 0; repetition < 2; ++repetition) {  // the second starts from nothing
    const std::vector<KernelRecord> records = record_the_script(*recorder);
    EXPECT_EQ(recorder->lost(), 0U);
    ASSERT_EQ(records.size(), 4U);
    const KernelRecord& copy = records[0];
    EXPECT_EQ(copy.kind, ActivityKind::kMemcpy);
    EXPECT_EQ(copy.name, "memcpy DtoH");
    EXPECT_EQ(copy.bytes, 4096U);
    EXPECT_EQ(copy.start_ns, 500);
    EXPECT_EQ(copy.end_ns, 900);
    EXPECT_EQ(copy.external_id, 11U);
    const KernelRecord& combine = records[1];
    EXPECT_EQ(combine.kind, ActivityKind::kKernel);
    EXPECT_EQ(combine.name, "combine_kernel<bf16, 8>");
    EXPECT_EQ(combine.start_ns, 2000);
    EXPECT_EQ(combine.end_ns, 5000);
    EXPECT_EQ(combine.grid, (std::array{132, 1, 1}));
    EXPECT_EQ(combine.block, (std::array{256, 2, 1}));
    EXPECT_EQ(combine.registers, 96);
    EXPECT_EQ(combine.shared_bytes, 1024 + 65536);
    EXPECT_EQ(combine.external_id, 11U) << "its link came in a later buffer";
    EXPECT_FALSE(combine.graph_launch);
    const KernelRecord& gemm = records[2];
    EXPECT_EQ(gemm.name, "nvjet_tst_128x256_64x4");
    EXPECT_EQ(gemm.external_id, 12U);
    EXPECT_TRUE(gemm.graph_launch);
    const KernelRecord& fill = records[3];
    EXPECT_EQ(fill.kind, ActivityKind::kMemset);
    EXPECT_EQ(fill.bytes, 64U);
    EXPECT_TRUE(fill.graph_launch);
  }
}

TEST(ActivityRecorder, CountsWhatIsLost) {
  std::string reason;
  const auto recorder = ActivityRecorder::open(reason, FAKE_CUPTI);
  ASSERT_NE(recorder, nullptr) << reason;
  {
    const Environment drops("FAKE_CUPTI_DROPS", "5");
    EXPECT_EQ(record_the_script(*recorder).size(), 4U);
    EXPECT_EQ(recorder->lost(), 5U);
  }
  {
    const Environment running("FAKE_CUPTI_RUNNING", "1");
    EXPECT_EQ(record_the_script(*recorder).size(), 3U);
    EXPECT_EQ(recorder->lost(), 1U);
  }
  EXPECT_EQ(record_the_script(*recorder).size(), 4U);
  EXPECT_EQ(recorder->lost(), 0U);
}

TEST(ActivityRecorder, OneRecordsAtATimeAndLeavesNothingSwitchedOn) {
  void* fake = dlopen(FAKE_CUPTI, RTLD_NOW);
  ASSERT_NE(fake, nullptr);
  const auto enabled = reinterpret_cast<int (*)()>(dlsym(fake, "fake_cupti_enabled_kinds"));
  std::string reason;
  auto one = ActivityRecorder::open(reason, FAKE_CUPTI);
  const auto other = ActivityRecorder::open(reason, FAKE_CUPTI);
  EXPECT_EQ(enabled(), 0);
  EXPECT_THROW(static_cast<void>(one->stop()), Error);
  one->start();
  EXPECT_GT(enabled(), 0);
  EXPECT_THROW(other->start(), Error);
  one.reset();  // while it records
  EXPECT_EQ(enabled(), 0);
  EXPECT_EQ(record_the_script(*other).size(), 4U);
  EXPECT_EQ(enabled(), 0);
  dlclose(fake);
}

#endif

}  // namespace
}  // namespace moe::cuda
