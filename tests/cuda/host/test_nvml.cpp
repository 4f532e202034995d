// NVML without a GPU: bits in words, absence as a sentence, and a stand-in library for the rest.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include "cuda/host/environment.h"
#include "cuda/nvml.h"

namespace moe::cuda {
namespace {

constexpr const char* kBusId = "0000:3b:00.0";

TEST(NvmlThrottle, NamesTheBits) {
  EXPECT_EQ(throttle_text(0), "");
  EXPECT_EQ(throttle_text(0x1), "") << "an idle GPU is not throttled";
  EXPECT_EQ(throttle_text(0x4), "sw power cap");
  EXPECT_EQ(throttle_text(0x8), "hw slowdown");
  EXPECT_EQ(throttle_text(0x20), "sw thermal slowdown");
  EXPECT_EQ(throttle_text(0x40), "hw thermal slowdown");
  EXPECT_EQ(throttle_text(0x80), "hw power brake");
  EXPECT_EQ(throttle_text(0x1 | 0x2 | 0x10 | 0x100),
            "application clocks setting, sync boost, display clock setting");
  EXPECT_EQ(throttle_text(0x4 | 0x40), "sw power cap, hw thermal slowdown");
  EXPECT_EQ(throttle_text(0x4 | (std::uint64_t{1} << 40)),
            "sw power cap, unknown reason 0x10000000000");
}

TEST(NvmlSensor, AbsenceIsASentence) {
  std::string reason;
  EXPECT_EQ(NvmlSensor::open(kBusId, reason, "libno-such-nvml.so.1"), nullptr);
  EXPECT_EQ(reason.rfind("no NVML: libno-such-nvml.so.1", 0), 0U) << reason;
  EXPECT_EQ(reason.find('\n'), std::string::npos);
  EXPECT_FALSE(NvmlSystem::describe(reason, "libno-such-nvml.so.1").has_value());
  EXPECT_EQ(reason.rfind("no NVML: libno-such-nvml.so.1", 0), 0U) << reason;
}

TEST(NvmlSensor, AnotherLibraryIsNotNvml) {
  std::string reason;
  EXPECT_EQ(NvmlSensor::open(kBusId, reason, "libm.so.6"), nullptr);
  EXPECT_EQ(reason, "no NVML: libm.so.6 lacks functions that every driver since 2013 has");
}

TEST(NvmlSensor, ADriverThatDoesNotStartSaysWhy) {
  const Environment fails("FAKE_NVML_INIT", "9");
  std::string reason;
  EXPECT_EQ(NvmlSensor::open(kBusId, reason, FAKE_NVML), nullptr);
  EXPECT_EQ(reason, "no NVML: " FAKE_NVML " does not start: Driver Not Loaded");
}

TEST(NvmlSensor, AGpuThatIsNotThere) {
  std::string reason;
  EXPECT_EQ(NvmlSensor::open("0000:99:00.0", reason, FAKE_NVML), nullptr);
  EXPECT_EQ(reason, "NVML shows no GPU at 0000:99:00.0: Not Found");
}

TEST(NvmlSensor, Reads) {
  std::string reason = "left over";
  const auto sensor = NvmlSensor::open(kBusId, reason, FAKE_NVML);
  ASSERT_NE(sensor, nullptr) << reason;
  EXPECT_EQ(reason, "");
  EXPECT_EQ(sensor->uuid(), "GPU-01234567-89ab-cdef-0123-456789abcdef");
  EXPECT_EQ(sensor->driver_version(), "580.159.03");
  EXPECT_EQ(sensor->max_sm_clock_mhz(), 1980);
  EXPECT_EQ(sensor->power_limit_w(), 700);
  const NvmlReading idle = sensor->read();
  EXPECT_EQ(idle.sm_clock_mhz, 1755);
  EXPECT_EQ(idle.memory_clock_mhz, 3201);
  EXPECT_DOUBLE_EQ(idle.power_w, 612.345);
  EXPECT_EQ(idle.temperature_c, 63);
  EXPECT_EQ(idle.throttle_reasons, 0x1U);
  EXPECT_EQ(idle.throttle_text, "");
  const Environment capped("FAKE_NVML_REASONS", "0x24");
  EXPECT_EQ(sensor->read().throttle_text, "sw power cap, sw thermal slowdown");
}

TEST(NvmlSensor, ReadsWhatTheDriverShows) {
  const Environment hides("FAKE_NVML_HIDES", "1");
  std::string reason;
  const auto sensor = NvmlSensor::open(kBusId, reason, FAKE_NVML);
  ASSERT_NE(sensor, nullptr) << reason;
  const NvmlReading reading = sensor->read();
  EXPECT_EQ(reading.sm_clock_mhz, 1755);
  EXPECT_EQ(reading.power_w, 0);
  EXPECT_EQ(reading.temperature_c, 0);
  EXPECT_EQ(reading.throttle_reasons, 0U);
  EXPECT_EQ(reading.throttle_text, "not reported");
}

TEST(NvmlSensor, AnOldDriverHasTheReasonsUnderTheirFormerName) {
  const Environment capped("FAKE_NVML_REASONS", "0x8");
  std::string reason;
  const auto sensor = NvmlSensor::open(kBusId, reason, FAKE_NVML_OLD_DRIVER);
  ASSERT_NE(sensor, nullptr) << reason;
  EXPECT_EQ(sensor->read().throttle_text, "hw slowdown");
}

TEST(NvmlSensor, ShutsDownWhatItStarted) {
  void* fake = dlopen(FAKE_NVML, RTLD_NOW);
  ASSERT_NE(fake, nullptr);
  const auto open_count = reinterpret_cast<int (*)()>(dlsym(fake, "fake_nvml_open_count"));
  ASSERT_EQ(open_count(), 0);
  std::string reason;
  auto sensor = NvmlSensor::open(kBusId, reason, FAKE_NVML);
  EXPECT_EQ(open_count(), 1);
  EXPECT_EQ(NvmlSensor::open("0000:99:00.0", reason, FAKE_NVML), nullptr);
  EXPECT_EQ(open_count(), 1);
  sensor.reset();
  EXPECT_EQ(open_count(), 0);
  dlclose(fake);
}

TEST(NvmlSystem, DescribesDriverAndGpus) {
  std::string reason;
  const auto system = NvmlSystem::describe(reason, FAKE_NVML);
  ASSERT_TRUE(system.has_value()) << reason;
  EXPECT_EQ(system->driver_version, "580.159.03");
  EXPECT_EQ(system->cuda_version, 13000);
  ASSERT_EQ(system->gpus.size(), 1U);
  const NvmlGpu& gpu = system->gpus[0];
  EXPECT_EQ(gpu.name, "NVIDIA Imaginary");
  EXPECT_EQ(gpu.pci_bus_id, "00000000:3B:00.0");
  EXPECT_EQ(gpu.uuid, "GPU-01234567-89ab-cdef-0123-456789abcdef");
  EXPECT_EQ(gpu.memory_bytes, 150754820096U);
  EXPECT_EQ(gpu.major, 9);
  EXPECT_EQ(gpu.minor, 0);
}

}  // namespace
}  // namespace moe::cuda
