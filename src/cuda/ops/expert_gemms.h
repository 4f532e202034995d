// The experts of a layer as GEMMs of the library, one expert after another or several at once.
//
//   rows[T·K,H] ─gate|up─▶ gate_up[T·K,2·I] ─activation─▶ act (its first half) ─down─▶ rows[T·K,H]
//
// One GEMM of an expert fills the device only when the expert has many rows; GEMMs of different
// experts share nothing but memory, so they can fill it together, in several streams.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "core/level.h"
#include "cuda/backend.h"
#include "cuda/launch_team.h"
#include "cuda/ops/gemm_cublaslt.h"
#include "cuda/ops/layer_kernels.h"
#include "moe/layer.h"

namespace moe::cuda {

enum class Pipeline : std::uint8_t {
  kPhases,  ///< gate|up of all experts, one activation over all rows, down of all experts
  kChains,  ///< gate|up, activation and down of an expert follow one another in its stream
};
enum class ExpertOrder : std::uint8_t { kByIndex, kLargestFirst };

/// How the experts are spread over streams, and those over threads of the host that launch to them.
/// Results do not depend on it.
struct ExpertSchedule {
  int streams = 1;
  int launchers = 1;  ///< at most `streams`
  Pipeline pipeline = Pipeline::kPhases;
  ExpertOrder order = ExpertOrder::kByIndex;
  bool operator==(const ExpertSchedule&) const = default;
};
/// "4 streams, 2 launching threads, chains, largest first"
[[nodiscard]] std::string describe(const ExpertSchedule& schedule);

class ExpertGemms {
 public:
  /// The most streams a schedule may have.
  static constexpr int kMostStreams = 8;
  static constexpr int kMostLaunchers = 4;

  /// In device memory, outliving it; E', P and M as in routed_buffers.h.
  struct Matrices {
    const void* gate_up = nullptr;      // [E',M·I,H]
    const void* down = nullptr;         // [E,H,I]
    const void* shared_down = nullptr;  // [P,H,I]
  };
  /// `streams` and `launchers`: the most
  /// that schedules will ask for; the library's workspace is divided by the former. Works on the
  /// device that is current.
  ExpertGemms(CublasLt& library, const Problem& problem, const Matrices& matrices, int streams,
              int launchers = 1);

  /// What run() queues comes after what `stream` holds now. Once before each run(), as soon as the
  /// rows are queued: the host has time for it then.
  void fork(const ExpertSchedule& schedule, cudaStream_t stream);
  /// Queues all experts; what is queued on `stream` next comes after them. offsets[E'+1] is on the
  /// host.
  void run(const ExpertSchedule& schedule, const std::int32_t* offsets, const RoutedBuffers& b,
           LayerKernels& kernels, cudaStream_t stream, Context* context);

  /// Whose choices count; share_choices() after changing them.
  [[nodiscard]] Matmul& gate_up() { return products_.front().gate_up; }
  [[nodiscard]] Matmul& down() { return products_.front().down; }
  void share_choices();
  [[nodiscard]] int streams() const { return static_cast<int>(lane_rows_.size()); }
  [[nodiscard]] int launchers() const { return static_cast<int>(products_.size()); }
  /// Asks the library for its choices for forwards of up to `tokens`, so that run() decides nothing.
  void choose_up_to(std::int64_t tokens);

 private:
  struct Segment {
    std::int32_t expert = 0;
    std::int32_t first = 0;
    std::int32_t rows = 0;
    int lane = 0;
  };
  /// segments_: the experts that have rows, in the order of the schedule, each with its stream.
  void assign(const ExpertSchedule& schedule, const std::int32_t* offsets);
  void join(const ExpertSchedule& schedule, cudaStream_t stream);
  [[nodiscard]] cudaStream_t lane_stream(int lane, cudaStream_t main) const {
    return lane == 0 ? main : side_[static_cast<std::size_t>(lane - 1)].get();
  }
  /// The two GEMMs as one thread runs them.
  struct Products {
    Matmul gate_up;
    Matmul down;
  };
  void multiply_gate_up(Products& products, const Segment& segment, const RoutedBuffers& b,
                        cudaStream_t stream, Context* context);
  void multiply_down(Products& products, const Segment& segment, const RoutedBuffers& b,
                     cudaStream_t stream, Context* context);
  [[nodiscard]] std::int64_t bytes(std::int64_t elements) const {
    return elements * static_cast<std::int64_t>(size_of(problem_.dtype));
  }

  Problem problem_;
  std::int64_t experts_;  // E'
  Matrices matrices_;
  std::vector<Products> products_;  // by launcher
  std::deque<Stream> side_;         // lane 0 is the caller's stream
  std::deque<Event> done_;
  Event forked_;
  std::vector<Segment> segments_;
  std::vector<std::int64_t> lane_rows_;
  std::unique_ptr<LaunchTeam> team_;  // null with one launcher
};

}  // namespace moe::cuda
