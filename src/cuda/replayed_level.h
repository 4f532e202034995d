// Levels whose forward only queues work: one that comes again is recorded and replayed as a graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "cuda/check.h"
#include "cuda/graph.h"
#include "cuda/level_base.h"

namespace moe::cuda {

class ReplayedLevel : public CudaLevel {
 public:
  /// Queues the work of a forward kernel by kernel the first time its addresses and rows come, and
  /// records it the second time: recording takes the host longer than queueing, which pays for addresses
  /// that come back and never for others. From then on a forward is one launch, under any routing. Kernel
  /// by kernel, too: with Launch::kEager, in the caller's own recording, and while tracing.
  void forward(Context& context, const TensorView& x, const TensorView& y) final;
  [[nodiscard]] Launch launch() const final { return launch_; }
  [[nodiscard]] std::string uncapturable() const final { return {}; }

 protected:
  /// Graphs kept per layer. An engine has a few buffers and a few batch sizes.
  static constexpr std::size_t kMostGraphs = 16;
  /// Device memory of one instantiated graph of a dozen nodes, with room to spare, for memory().
  static constexpr std::uint64_t kGraphBytes = std::uint64_t{256} << 10;
  static constexpr std::uint64_t kGraphsPrepared = kMostGraphs * kGraphBytes;

  /// Of prepare().
  void keep_launch(const ExecutionOptions& execution);
  /// On which what is to be recorded is queued.
  [[nodiscard]] cudaStream_t recorder() const { return recorder_->get(); }
  /// All kernels of a forward, on stream(). What it queues may depend on nothing but its arguments.
  virtual void queue(Context& context, const TensorView& x, const TensorView& y) = 0;

 private:
  /// What a graph is of.
  struct Operands {
    const void* x = nullptr;
    void* y = nullptr;
    std::int64_t tokens = 0;
    const void* experts = nullptr;  // of given routes, like the weights
    const void* weights = nullptr;
    bool operator==(const Operands&) const = default;
  };
  struct Known {
    Operands of;
    std::uint64_t last_use = 0;
    std::optional<GraphExec> graph = {};  // from the second time on
  };

  /// The entry of these operands: in place of the one unused for longest when there are kMostGraphs.
  Known& known(const Operands& of);
  void record(Context& context, const TensorView& x, const TensorView& y, Known& entry);

  Launch launch_ = Launch::kGraph;
  std::optional<Stream> recorder_;  // kernels are only recorded on it, never run
  std::vector<Known> known_;
  std::uint64_t uses_ = 0;
};

}  // namespace moe::cuda
