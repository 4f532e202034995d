#include "cuda/ops/expert_gemms.h"

#include <algorithm>

#include "core/check.h"
#include "cuda/check.h"

namespace moe::cuda {

std::string describe(const ExpertSchedule& schedule) {
  return fmt::format("{} {}, {}, {}", schedule.streams,
                     schedule.streams == 1 ? "stream" : "streams",
                     schedule.pipeline == Pipeline::kPhases ? "phases" : "chains",
                     schedule.order == ExpertOrder::kByIndex ? "by index" : "largest first");
}

ExpertGemms::ExpertGemms(CublasLt& library, const Problem& problem, const void* packed_gate_up,
                         const void* down, int streams)
    : problem_(problem),
      packed_gate_up_(static_cast<const std::byte*>(packed_gate_up)),
      packed_down_(static_cast<const std::byte*>(down)),
      gate_up_(library, {.n = 2 * problem.shape.intermediate,
                         .k = problem.shape.hidden,
                         .in = problem.dtype,
                         .out = problem.dtype,
                         .lanes = streams}),
      down_(library, {.n = problem.shape.hidden,
                      .k = problem.shape.intermediate,
                      .in = problem.dtype,
                      .out = problem.dtype,
                      .a_stride = 2 * problem.shape.intermediate,
                      .lanes = streams}),
      forked_(cudaEventDisableTiming) {
  MOE_INTERNAL_CHECK(1 <= streams && streams <= kMostStreams, "{} streams, not 1 to {}", streams,
                     kMostStreams);
  for (int lane = 1; lane < streams; ++lane) {
    side_.emplace_back(unsigned{cudaStreamNonBlocking});
    done_.emplace_back(unsigned{cudaEventDisableTiming});
  }
  segments_.reserve(static_cast<std::size_t>(problem.shape.experts));
  lane_rows_.resize(static_cast<std::size_t>(streams));
}

void ExpertGemms::choose_up_to(std::int64_t tokens) {
  gate_up_.choose_up_to(tokens);
  down_.choose_up_to(tokens);
}

void ExpertGemms::assign(const ExpertSchedule& schedule, const std::int32_t* offsets) {
  segments_.clear();
  for (std::int32_t expert = 0; expert < problem_.shape.experts; ++expert) {
    const std::int32_t rows = offsets[expert + 1] - offsets[expert];
    if (rows > 0) segments_.push_back({expert, offsets[expert], rows, 0});
  }
  if (schedule.order == ExpertOrder::kLargestFirst) {
    // Equal ones by index: the order depends on the routing alone.
    std::sort(segments_.begin(), segments_.end(), [](const Segment& a, const Segment& b) {
      return a.rows != b.rows ? a.rows > b.rows : a.expert < b.expert;
    });
  }
  const auto end = lane_rows_.begin() + schedule.streams;
  std::fill(lane_rows_.begin(), end, 0);
  for (Segment& segment : segments_) {
    const auto idlest = std::min_element(lane_rows_.begin(), end);
    segment.lane = static_cast<int>(idlest - lane_rows_.begin());
    *idlest += segment.rows;
  }
}

void ExpertGemms::fork(const ExpertSchedule& schedule, cudaStream_t stream) {
  MOE_INTERNAL_CHECK(schedule.streams <= streams(), "a schedule of {} streams for {}",
                     schedule.streams, streams());
  if (schedule.streams == 1) return;
  forked_.record(stream);
  for (int lane = 1; lane < schedule.streams; ++lane) {
    MOE_CUDA_CHECK(cudaStreamWaitEvent(lane_stream(lane, stream), forked_.get()));
  }
}

void ExpertGemms::join(const ExpertSchedule& schedule, cudaStream_t stream) {
  for (int lane = 1; lane < schedule.streams; ++lane) {
    const Event& done = done_[static_cast<std::size_t>(lane - 1)];
    done.record(lane_stream(lane, stream));
    MOE_CUDA_CHECK(cudaStreamWaitEvent(stream, done.get()));
  }
}

void ExpertGemms::multiply_gate_up(const Segment& segment, const RoutedBuffers& b,
                                   cudaStream_t stream, Context* context) {
  const std::int64_t n = gate_up_.n();
  const std::int64_t k = gate_up_.k();
  gate_up_.run(b.rows + bytes(segment.first * k), packed_gate_up_ + bytes(segment.expert * n * k),
               b.gate_up + bytes(segment.first * n), segment.rows, stream, 1, segment.lane);
  if (context == nullptr) return;
  context->record("gemm_gate_up", static_cast<std::uint64_t>(bytes(segment.rows * n)), [&] {
    return fmt::format("expert {} m={} n={} k={}, stream {}", segment.expert, segment.rows, n, k,
                       segment.lane);
  });
}

void ExpertGemms::multiply_down(const Segment& segment, const RoutedBuffers& b, cudaStream_t stream,
                                Context* context) {
  const std::int64_t n = down_.n();
  const std::int64_t k = down_.k();
  down_.run(b.gate_up + bytes(segment.first * 2 * k), packed_down_ + bytes(segment.expert * n * k),
            b.rows + bytes(segment.first * n), segment.rows, stream, 1, segment.lane);
  if (context == nullptr) return;
  context->record("gemm_down", static_cast<std::uint64_t>(bytes(segment.rows * n)), [&] {
    return fmt::format("expert {} m={} n={} k={}, stream {}", segment.expert, segment.rows, n, k,
                       segment.lane);
  });
}

void ExpertGemms::run(const ExpertSchedule& schedule, const std::int32_t* offsets,
                      const RoutedBuffers& b, LayerKernels& kernels, cudaStream_t stream,
                      Context* context) {
  const std::int64_t intermediate = problem_.shape.intermediate;
  const std::int64_t routed = offsets[problem_.shape.experts];
  const auto swiglu = [&](std::int64_t first, std::int64_t rows, cudaStream_t on) {
    kernels.swiglu(b.gate_up + bytes(first * 2 * intermediate), rows, on);
    if (context == nullptr) return;
    context->record("swiglu", static_cast<std::uint64_t>(bytes(rows * intermediate)),
                    [&] { return fmt::format("{} rows x {} columns", rows, intermediate); });
  };
  assign(schedule, offsets);
  if (schedule.pipeline == Pipeline::kChains) {
    for (const Segment& segment : segments_) {
      const cudaStream_t on = lane_stream(segment.lane, stream);
      multiply_gate_up(segment, b, on, context);
      swiglu(segment.first, segment.rows, on);
      multiply_down(segment, b, on, context);
    }
    join(schedule, stream);
    return;
  }
  for (const Segment& segment : segments_) {
    multiply_gate_up(segment, b, lane_stream(segment.lane, stream), context);
  }
  join(schedule, stream);
  swiglu(0, routed, stream);
  fork(schedule, stream);
  for (const Segment& segment : segments_) {
    multiply_down(segment, b, lane_stream(segment.lane, stream), context);
  }
  join(schedule, stream);
}

}  // namespace moe::cuda
