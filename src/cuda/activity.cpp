#include "cuda/activity.h"

#include "core/check.h"

#if MOE_HAVE_CUPTI
#include <cupti.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "cuda/dynamic_library.h"

namespace moe::cuda {
namespace {

// The oldest layouts that have every field read here. Later CUPTI versions only append to them, so
// that one build understands the records of CUPTI 12 and 13.
using Kernel = CUpti_ActivityKernel7;
using Memcpy = CUpti_ActivityMemcpy4;
using Memset = CUpti_ActivityMemset3;

// External correlation ids are attached to records of API calls, which must therefore be on.
constexpr std::array kKinds = {CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION,
                               CUPTI_ACTIVITY_KIND_RUNTIME,
                               CUPTI_ACTIVITY_KIND_DRIVER,
                               CUPTI_ACTIVITY_KIND_MEMCPY,
                               CUPTI_ACTIVITY_KIND_MEMSET,
                               CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL};
constexpr std::size_t kBufferBytes = std::size_t{4} << 20;
constexpr std::size_t kBufferAlignment = 8;  // CUPTI's

/// Where CUPTI's callbacks, which carry no pointer of ours, put what they read.
struct Collector {
  std::mutex mutex;
  bool active = false;
  decltype(cuptiActivityGetNextRecord)* next_record = nullptr;
  decltype(cuptiActivityGetNumDroppedRecords)* dropped_records = nullptr;
  std::vector<std::pair<std::uint32_t, KernelRecord>> records;  // with their correlation ids
  std::map<std::uint32_t, std::uint64_t> external_ids;          // by correlation id
  std::uint64_t lost = 0;
};
Collector& collector() {
  static Collector instance;
  return instance;
}

std::string memcpy_name(std::uint8_t kind) {
  switch (kind) {
    case CUPTI_ACTIVITY_MEMCPY_KIND_HTOD:
      return "memcpy HtoD";
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOH:
      return "memcpy DtoH";
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOD:
      return "memcpy DtoD";
    case CUPTI_ACTIVITY_MEMCPY_KIND_PTOP:
      return "memcpy PtoP";
    default:
      return "memcpy";
  }
}

/// The fields that records of all three kinds have.
template <class Record>
KernelRecord common_fields(const Record& record, ActivityKind kind, std::string name) {
  KernelRecord result;
  result.kind = kind;
  result.name = std::move(name);
  result.start_ns = static_cast<std::int64_t>(record.start);
  result.end_ns = static_cast<std::int64_t>(record.end);
  result.graph_launch = record.graphNodeId != 0;
  return result;
}

void add(Collector& to, std::uint32_t correlation, KernelRecord record) {
  if (record.start_ns == 0 || record.end_ns == 0) {
    ++to.lost;  // had not ended when the buffer was taken
  } else {
    to.records.emplace_back(correlation, std::move(record));
  }
}

void read(Collector& to, const CUpti_Activity& activity) {
  switch (activity.kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
    case CUPTI_ACTIVITY_KIND_KERNEL: {
      const auto& kernel = reinterpret_cast<const Kernel&>(activity);
      KernelRecord record =
          common_fields(kernel, ActivityKind::kKernel, short_kernel_name(kernel.name));
      record.grid = {kernel.gridX, kernel.gridY, kernel.gridZ};
      record.block = {kernel.blockX, kernel.blockY, kernel.blockZ};
      record.registers = kernel.registersPerThread;
      record.shared_bytes =
          std::int64_t{kernel.staticSharedMemory} + std::int64_t{kernel.dynamicSharedMemory};
      add(to, kernel.correlationId, std::move(record));
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto& copy = reinterpret_cast<const Memcpy&>(activity);
      KernelRecord record = common_fields(copy, ActivityKind::kMemcpy, memcpy_name(copy.copyKind));
      record.bytes = copy.bytes;
      add(to, copy.correlationId, std::move(record));
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
      const auto& fill = reinterpret_cast<const Memset&>(activity);
      KernelRecord record = common_fields(fill, ActivityKind::kMemset, "memset");
      record.bytes = fill.bytes;
      add(to, fill.correlationId, std::move(record));
      break;
    }
    case CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION: {
      const auto& link = reinterpret_cast<const CUpti_ActivityExternalCorrelation&>(activity);
      to.external_ids[link.correlationId] = link.externalId;
      break;
    }
    default:
      break;
  }
}

void CUPTIAPI buffer_requested(std::uint8_t** buffer, std::size_t* size,
                               std::size_t* most_records) {
  // Without memory the pointer stays null, and CUPTI counts what it drops.
  *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(kBufferAlignment, kBufferBytes));
  *size = *buffer == nullptr ? 0 : kBufferBytes;
  *most_records = 0;
}

void CUPTIAPI buffer_completed(CUcontext context, std::uint32_t stream, std::uint8_t* buffer,
                               std::size_t /*size*/, std::size_t valid_bytes) {
  const std::unique_ptr<std::uint8_t, decltype(&std::free)> owner(buffer, &std::free);
  Collector& to = collector();
  const std::lock_guard lock(to.mutex);
  if (!to.active) return;
  try {
    CUpti_Activity* record = nullptr;
    while (to.next_record(buffer, valid_bytes, &record) == CUPTI_SUCCESS) read(to, *record);
  } catch (const std::bad_alloc&) {
    ++to.lost;  // no exception may reach CUPTI
  }
  std::size_t dropped = 0;
  if (to.dropped_records(context, stream, &dropped) == CUPTI_SUCCESS) to.lost += dropped;
}

/// libcupti of the newest version first; beside the executable, by name, in the usual toolkits.
std::vector<std::string> library_candidates() {
  namespace fs = std::filesystem;
  std::vector<std::string> candidates;
  const std::array names = {"libcupti.so.13", "libcupti.so.12"};
  std::error_code error;
  if (const fs::path self = fs::read_symlink("/proc/self/exe", error); !error) {
    for (const char* name : names) {
      for (const fs::path& path : {self.parent_path() / name, self.parent_path() / "lib" / name}) {
        if (fs::exists(path, error)) candidates.push_back(path);
      }
    }
  }
  candidates.insert(candidates.end(), names.begin(), names.end());
  std::vector<fs::path> toolkits;
  for (const auto& entry : fs::directory_iterator("/usr/local", error)) {
    if (entry.path().filename().string().starts_with("cuda")) toolkits.push_back(entry.path());
  }
  std::sort(toolkits.rbegin(), toolkits.rend());
  for (const char* name : names) {
    for (const fs::path& toolkit : toolkits) {
      for (const char* folder : {"extras/CUPTI/lib64", "lib64", "targets/x86_64-linux/lib"}) {
        const fs::path path = toolkit / folder / name;
        if (fs::exists(path, error)) candidates.push_back(path);
      }
    }
  }
  return candidates;
}

}  // namespace

struct ActivityRecorder::Cupti {
  std::unique_ptr<DynamicLibrary> file;
  decltype(cuptiGetResultString)* result_string = nullptr;
  decltype(cuptiActivityRegisterCallbacks)* register_callbacks = nullptr;
  decltype(cuptiActivityEnable)* enable = nullptr;
  decltype(cuptiActivityDisable)* disable = nullptr;
  decltype(cuptiActivityFlushAll)* flush_all = nullptr;
  decltype(cuptiActivityGetNextRecord)* next_record = nullptr;
  decltype(cuptiActivityGetNumDroppedRecords)* dropped_records = nullptr;
  decltype(cuptiActivityPushExternalCorrelationId)* push_external_id = nullptr;
  decltype(cuptiActivityPopExternalCorrelationId)* pop_external_id = nullptr;

  [[nodiscard]] std::string text(CUptiResult result) const {
    const char* text = nullptr;
    if (result_string(result, &text) != CUPTI_SUCCESS || text == nullptr) {
      return fmt::format("error {}", static_cast<int>(result));
    }
    return text;
  }
  void check(CUptiResult result, const char* call) const {
    if (result != CUPTI_SUCCESS) fail(ErrorCode::kCuda, "{} from {}", text(result), call);
  }
  void disable_all() const {
    for (const CUpti_ActivityKind kind : kKinds) static_cast<void>(disable(kind));
  }
};

ActivityRecorder::ActivityRecorder(std::unique_ptr<Cupti> cupti) : cupti_(std::move(cupti)) {}

std::unique_ptr<ActivityRecorder> ActivityRecorder::open(std::string& reason,
                                                         const std::string& library) {
  auto cupti = std::make_unique<Cupti>();
  cupti->file = DynamicLibrary::open(
      library.empty() ? library_candidates() : std::vector<std::string>{library}, reason);
  if (cupti->file == nullptr) {
    reason = fmt::format("no CUPTI: {}", reason);
    return nullptr;
  }
  const DynamicLibrary& file = *cupti->file;
  const bool complete =
      file.find("cuptiGetResultString", cupti->result_string) &&
      file.find("cuptiActivityRegisterCallbacks", cupti->register_callbacks) &&
      file.find("cuptiActivityEnable", cupti->enable) &&
      file.find("cuptiActivityDisable", cupti->disable) &&
      file.find("cuptiActivityFlushAll", cupti->flush_all) &&
      file.find("cuptiActivityGetNextRecord", cupti->next_record) &&
      file.find("cuptiActivityGetNumDroppedRecords", cupti->dropped_records) &&
      file.find("cuptiActivityPushExternalCorrelationId", cupti->push_external_id) &&
      file.find("cuptiActivityPopExternalCorrelationId", cupti->pop_external_id);
  if (!complete) {
    reason = fmt::format("no CUPTI: {} lacks functions of the activity API", file.path());
    return nullptr;
  }
  // Whether this driver and this user may record at all shows only when something is switched on.
  CUptiResult result = cupti->register_callbacks(buffer_requested, buffer_completed);
  if (result == CUPTI_SUCCESS) result = cupti->enable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  if (result != CUPTI_SUCCESS) {
    reason = fmt::format("CUPTI ({}) cannot record here: {}", file.path(), cupti->text(result));
    return nullptr;
  }
  cupti->disable_all();
  reason.clear();
  return std::unique_ptr<ActivityRecorder>(new ActivityRecorder(std::move(cupti)));
}

ActivityRecorder::~ActivityRecorder() {
  if (!recording_) return;
  cupti_->disable_all();
  static_cast<void>(cupti_->flush_all(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED));
  const std::lock_guard lock(collector().mutex);
  collector().active = false;
}

const std::string& ActivityRecorder::library_path() const {
  return cupti_->file->path();
}

void ActivityRecorder::start() {
  // What earlier launches left in CUPTI's buffers is delivered now, and ignored.
  cupti_->check(cupti_->flush_all(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "cuptiActivityFlushAll");
  {
    Collector& to = collector();
    const std::lock_guard lock(to.mutex);
    MOE_CHECK(!to.active, "one activity recorder records at a time, and one does");
    to.active = true;
    to.next_record = cupti_->next_record;
    to.dropped_records = cupti_->dropped_records;
    to.records.clear();
    to.external_ids.clear();
    to.lost = 0;
  }
  recording_ = true;
  for (const CUpti_ActivityKind kind : kKinds) {
    cupti_->check(cupti_->enable(kind), "cuptiActivityEnable");
  }
}

void ActivityRecorder::mark(std::uint64_t id) {
  constexpr CUpti_ExternalCorrelationKind kKind = CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0;
  if (marked_) cupti_->check(cupti_->pop_external_id(kKind, nullptr), "a mark's end");
  marked_ = false;
  if (id == 0) return;
  cupti_->check(cupti_->push_external_id(kKind, id), "a mark");
  marked_ = true;
}

std::vector<KernelRecord> ActivityRecorder::stop() {
  MOE_CHECK(recording_, "stop() without start()");
  mark(0);
  cupti_->disable_all();
  const CUptiResult flushed = cupti_->flush_all(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  recording_ = false;
  Collector& from = collector();
  const std::lock_guard lock(from.mutex);
  from.active = false;
  cupti_->check(flushed, "cuptiActivityFlushAll");
  lost_ = from.lost;
  std::vector<KernelRecord> records;
  records.reserve(from.records.size());
  for (auto& [correlation, record] : from.records) {
    // Only now: a call's external id may come in a later buffer than its kernel.
    const auto found = from.external_ids.find(correlation);
    if (found != from.external_ids.end()) record.external_id = found->second;
    records.push_back(std::move(record));
  }
  from.records.clear();
  from.external_ids.clear();
  std::stable_sort(
      records.begin(), records.end(),
      [](const KernelRecord& a, const KernelRecord& b) { return a.start_ns < b.start_ns; });
  return records;
}

}  // namespace moe::cuda

#else  // without CUPTI's headers there is only the reason

namespace moe::cuda {

struct ActivityRecorder::Cupti {
  std::string path;
};
ActivityRecorder::ActivityRecorder(std::unique_ptr<Cupti> cupti) : cupti_(std::move(cupti)) {}
ActivityRecorder::~ActivityRecorder() = default;
std::unique_ptr<ActivityRecorder> ActivityRecorder::open(std::string& reason,
                                                         const std::string& /*library*/) {
  reason = "no CUPTI: this build was made without a CUDA toolkit that has its headers";
  return nullptr;
}
const std::string& ActivityRecorder::library_path() const {
  return cupti_->path;
}
void ActivityRecorder::start() {
  fail(ErrorCode::kUnsupported, "this build has no CUPTI");
}
void ActivityRecorder::mark(std::uint64_t /*id*/) {
  fail(ErrorCode::kUnsupported, "this build has no CUPTI");
}
std::vector<KernelRecord> ActivityRecorder::stop() {
  fail(ErrorCode::kUnsupported, "this build has no CUPTI");
}

}  // namespace moe::cuda

#endif
