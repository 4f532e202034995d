// Records of every kernel, copy and fill on this process's GPUs, by CUPTI's activity API. Opened at
// run time; where it is missing there is a reason, never an error. Recording costs each launch some
// microseconds on the host: what is timed must not be recorded, and what is recorded is for shares
// and gaps.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/activity_records.h"

namespace moe::cuda {

class ActivityRecorder {
 public:
  /// nullptr when nothing can be recorded here, and `reason` then says why, in one sentence. Looks
  /// for libcupti beside the executable, where the dynamic linker looks, and in the toolkits under
  /// /usr/local/cuda*. `library` is the only file to try, for tests.
  [[nodiscard]] static std::unique_ptr<ActivityRecorder> open(std::string& reason,
                                                              const std::string& library = "");
  ActivityRecorder(const ActivityRecorder&) = delete;
  ActivityRecorder& operator=(const ActivityRecorder&) = delete;
  ~ActivityRecorder();

  /// Begins to record. Throws kInvalidArgument while any recorder of this process records.
  void start();
  /// What the calling thread launches from here on carries `id`, until the next mark; 0 is no mark.
  void mark(std::uint64_t id);
  /// Ends, and returns what was recorded since start(), by start time. The caller has waited for
  /// the device: what still runs is lost. Throws kCuda when CUPTI fails.
  [[nodiscard]] std::vector<KernelRecord> stop();
  /// Activities that the last stop() could not return: CUPTI had no buffer for them, or they had
  /// not ended. 0 means that the records are complete.
  [[nodiscard]] std::uint64_t lost() const { return lost_; }
  /// The file that was opened.
  [[nodiscard]] const std::string& library_path() const;

 private:
  struct Cupti;
  explicit ActivityRecorder(std::unique_ptr<Cupti> cupti);

  std::unique_ptr<Cupti> cupti_;
  std::uint64_t lost_ = 0;
  bool recording_ = false;
  bool marked_ = false;
};

}  // namespace moe::cuda
