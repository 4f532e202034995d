// A stand-in for libcupti that "records" a scripted forward: its buffers hold records of CUPTI's
// own types, as a real library's do. Environment variables switch it:
//   FAKE_CUPTI_ENABLE=35   what cuptiActivityEnable returns
//   FAKE_CUPTI_DROPS=5     records that the first buffer says it dropped
//   FAKE_CUPTI_RUNNING=1   the last kernel has not ended
#include <cupti.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <vector>

namespace {

CUpti_BuffersCallbackRequestFunc request = nullptr;
CUpti_BuffersCallbackCompleteFunc complete = nullptr;
std::set<int> enabled;
std::vector<std::uint64_t> external_ids;
std::size_t dropped = 0;

/// Writes records one behind the other, as CUPTI fills a buffer.
class Buffer {
 public:
  Buffer() { request(&data_, &size_, &most_); }
  bool usable() const { return data_ != nullptr; }
  template <class Record>
  void add(const Record& record) {
    if (used_ + sizeof(Record) > size_) std::abort();
    std::memcpy(data_ + used_, &record, sizeof(Record));
    used_ += sizeof(Record);
  }
  void deliver() { complete(nullptr, 0, data_, size_, used_); }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t most_ = 0;
  std::size_t used_ = 0;
};

CUpti_ActivityKernel10 kernel(const char* name, std::uint32_t correlation, std::uint64_t start,
                              std::uint64_t end, std::uint64_t graph_node) {
  CUpti_ActivityKernel10 record{};
  record.kind = CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL;
  record.name = name;
  record.correlationId = correlation;
  record.start = start;
  record.end = end;
  record.graphNodeId = graph_node;
  record.gridX = 132;
  record.gridY = record.gridZ = 1;
  record.blockX = 256;
  record.blockY = 2;
  record.blockZ = 1;
  record.registersPerThread = 96;
  record.staticSharedMemory = 1024;
  record.dynamicSharedMemory = 65536;
  return record;
}

}  // namespace

extern "C" {

CUptiResult CUPTIAPI cuptiGetResultString(CUptiResult result, const char** text) {
  *text = result == CUPTI_ERROR_INSUFFICIENT_PRIVILEGES ? "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"
                                                        : "CUPTI_ERROR_UNKNOWN";
  return CUPTI_SUCCESS;
}
CUptiResult CUPTIAPI cuptiActivityRegisterCallbacks(CUpti_BuffersCallbackRequestFunc requested,
                                                    CUpti_BuffersCallbackCompleteFunc completed) {
  request = requested;
  complete = completed;
  return CUPTI_SUCCESS;
}
CUptiResult CUPTIAPI cuptiActivityEnable(CUpti_ActivityKind kind) {
  if (const char* status = std::getenv("FAKE_CUPTI_ENABLE")) {
    return static_cast<CUptiResult>(std::atoi(status));
  }
  enabled.insert(kind);
  if (kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) external_ids.clear();
  return CUPTI_SUCCESS;
}
CUptiResult CUPTIAPI cuptiActivityDisable(CUpti_ActivityKind kind) {
  enabled.erase(kind);
  return CUPTI_SUCCESS;
}
/// The kinds that are on; the test asks for it through dlsym.
int fake_cupti_enabled_kinds() {
  return static_cast<int>(enabled.size());
}

CUptiResult CUPTIAPI cuptiActivityPushExternalCorrelationId(CUpti_ExternalCorrelationKind kind,
                                                            std::uint64_t id) {
  if (kind != CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0) return CUPTI_ERROR_INVALID_PARAMETER;
  external_ids.push_back(id);
  return CUPTI_SUCCESS;
}
CUptiResult CUPTIAPI cuptiActivityPopExternalCorrelationId(CUpti_ExternalCorrelationKind,
                                                           std::uint64_t*) {
  return external_ids.empty() ? CUPTI_ERROR_QUEUE_EMPTY : CUPTI_SUCCESS;
}

/// Delivers the scripted forward if two marks were made: an eager kernel and a copy under the
/// first, a kernel of a graph and a fill under the second. The first kernel's link comes a buffer
/// later.
CUptiResult CUPTIAPI cuptiActivityFlushAll(std::uint32_t) {
  if (external_ids.size() < 2) return CUPTI_SUCCESS;
  const char* drops = std::getenv("FAKE_CUPTI_DROPS");
  dropped = drops == nullptr ? 0 : static_cast<std::size_t>(std::atoi(drops));
  const bool running = std::getenv("FAKE_CUPTI_RUNNING") != nullptr;
  const auto link = [](std::uint32_t correlation, std::uint64_t id) {
    CUpti_ActivityExternalCorrelation record{};
    record.kind = CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION;
    record.externalKind = CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0;
    record.correlationId = correlation;
    record.externalId = id;
    return record;
  };
  Buffer first;
  Buffer second;
  if (!first.usable() || !second.usable()) return CUPTI_ERROR_OUT_OF_MEMORY;
  first.add(
      kernel("_ZN3moe4cuda14combine_kernelI13__nv_bfloat16Li8EEEvPKT_PS3_", 7, 2000, 5000, 0));
  CUpti_ActivityAPI call{};
  call.kind = CUPTI_ACTIVITY_KIND_RUNTIME;
  call.correlationId = 7;
  first.add(call);
  first.add(link(8, external_ids[0]));
  CUpti_ActivityMemcpy6 copy{};
  copy.kind = CUPTI_ACTIVITY_KIND_MEMCPY;
  copy.copyKind = CUPTI_ACTIVITY_MEMCPY_KIND_DTOH;
  copy.bytes = 4096;
  copy.start = 500;
  copy.end = 900;
  copy.correlationId = 8;
  first.add(copy);
  first.deliver();
  second.add(link(7, external_ids[0]));
  second.add(link(9, external_ids[1]));
  second.add(kernel("nvjet_tst_128x256_64x4", 9, 6000, running ? 0 : 8000, 77));
  CUpti_ActivityMemset4 fill{};
  fill.kind = CUPTI_ACTIVITY_KIND_MEMSET;
  fill.bytes = 64;
  fill.start = 8000;
  fill.end = 8100;
  fill.correlationId = 9;
  fill.graphNodeId = 78;
  second.add(fill);
  second.deliver();
  external_ids.clear();
  return CUPTI_SUCCESS;
}

CUptiResult CUPTIAPI cuptiActivityGetNumDroppedRecords(CUcontext, std::uint32_t,
                                                       std::size_t* count) {
  *count = dropped;
  dropped = 0;
  return CUPTI_SUCCESS;
}

CUptiResult CUPTIAPI cuptiActivityGetNextRecord(std::uint8_t* buffer, std::size_t bytes,
                                                CUpti_Activity** record) {
  std::size_t at = 0;
  if (*record != nullptr) {
    at = static_cast<std::size_t>(reinterpret_cast<std::uint8_t*>(*record) - buffer);
    switch ((*record)->kind) {
      case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
        at += sizeof(CUpti_ActivityKernel10);
        break;
      case CUPTI_ACTIVITY_KIND_MEMCPY:
        at += sizeof(CUpti_ActivityMemcpy6);
        break;
      case CUPTI_ACTIVITY_KIND_MEMSET:
        at += sizeof(CUpti_ActivityMemset4);
        break;
      case CUPTI_ACTIVITY_KIND_RUNTIME:
        at += sizeof(CUpti_ActivityAPI);
        break;
      default:
        at += sizeof(CUpti_ActivityExternalCorrelation);
        break;
    }
  }
  if (at >= bytes) return CUPTI_ERROR_MAX_LIMIT_REACHED;
  *record = reinterpret_cast<CUpti_Activity*>(buffer + at);
  return CUPTI_SUCCESS;
}

}  // extern "C"
