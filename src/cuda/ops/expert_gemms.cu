#include "cuda/ops/expert_gemms.h"

#include <algorithm>

#include "core/check.h"
#include "cuda/check.h"

namespace moe::cuda {

std::string describe(const ExpertSchedule& schedule) {
  return fmt::format("{} {}, {} launching {}, {}, {}", schedule.streams,
                     schedule.streams == 1 ? "stream" : "streams", schedule.launchers,
                     schedule.launchers == 1 ? "thread" : "threads",
                     schedule.pipeline == Pipeline::kPhases ? "phases" : "chains",
                     schedule.order == ExpertOrder::kByIndex ? "by index" : "largest first");
}

ExpertGemms::ExpertGemms(CublasLt& library, const Problem& problem, const Matrices& matrices,
                         int streams, int launchers)
    : problem_(problem),
      experts_(with_shared_slots(problem).experts),
      matrices_(matrices),
      forked_(cudaEventDisableTiming) {
  MOE_INTERNAL_CHECK(1 <= streams && streams <= kMostStreams, "{} streams, not 1 to {}", streams,
                     kMostStreams);
  MOE_INTERNAL_CHECK(1 <= launchers && launchers <= std::min(streams, kMostLaunchers),
                     "{} launchers for {} streams", launchers, streams);
  const std::int64_t gate_up_columns =
      matrices_before_activation(problem) * problem.shape.intermediate;
  const MatmulSpec gate_up{.n = gate_up_columns,
                           .k = problem.shape.hidden,
                           .in = problem.dtype,
                           .out = problem.dtype,
                           .lanes = streams};
  const MatmulSpec down_spec{.n = problem.shape.hidden,
                             .k = problem.shape.intermediate,
                             .in = problem.dtype,
                             .out = problem.dtype,
                             .a_stride = gate_up_columns,
                             .lanes = streams};
  for (int launcher = 0; launcher < launchers; ++launcher) {
    products_.push_back({Matmul(library, gate_up), Matmul(library, down_spec)});
  }
  if (launchers > 1) {
    int device = 0;
    MOE_CUDA_CHECK(cudaGetDevice(&device));
    team_ = std::make_unique<LaunchTeam>(
        launchers - 1, [device] { MOE_CUDA_CHECK_NOTHROW(cudaSetDevice(device)); });
  }
  for (int lane = 1; lane < streams; ++lane) {
    side_.emplace_back(unsigned{cudaStreamNonBlocking});
    done_.emplace_back(unsigned{cudaEventDisableTiming});
  }
  segments_.reserve(static_cast<std::size_t>(experts_));
  lane_rows_.resize(static_cast<std::size_t>(streams));
}

void ExpertGemms::choose_up_to(std::int64_t tokens) {
  const std::int64_t rows = most_rows_of_expert(problem_, tokens);
  gate_up().choose_up_to(rows);
  down().choose_up_to(rows);
  share_choices();
}

void ExpertGemms::share_choices() {
  for (std::size_t launcher = 1; launcher < products_.size(); ++launcher) {
    products_[launcher].gate_up.take_choices(gate_up());
    products_[launcher].down.take_choices(down());
  }
}

void ExpertGemms::assign(const ExpertSchedule& schedule, const std::int32_t* offsets) {
  segments_.clear();
  for (std::int32_t expert = 0; expert < experts_; ++expert) {
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
  MOE_INTERNAL_CHECK(schedule.launchers <= std::min(launchers(), schedule.streams),
                     "a schedule of {} launchers for {}, {} streams", schedule.launchers,
                     launchers(), schedule.streams);
  if (schedule.launchers > 1) team_->wake();
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

void ExpertGemms::multiply_gate_up(Products& products, const Segment& segment,
                                   const RoutedBuffers& b, cudaStream_t stream, Context* context) {
  const std::int64_t n = products.gate_up.n();
  const std::int64_t k = products.gate_up.k();
  products.gate_up.run(
      b.rows + bytes(segment.first * k),
      static_cast<const std::byte*>(matrices_.gate_up) + bytes(segment.expert * n * k),
      b.gate_up + bytes(segment.first * n), segment.rows, stream, 1, segment.lane);
  if (context == nullptr) return;
  context->record("gemm_gate_up", static_cast<std::uint64_t>(bytes(segment.rows * n)), [&] {
    return fmt::format("expert {} m={} n={} k={}, stream {}", segment.expert, segment.rows, n, k,
                       segment.lane);
  });
}

void ExpertGemms::multiply_down(Products& products, const Segment& segment, const RoutedBuffers& b,
                                cudaStream_t stream, Context* context) {
  const std::int64_t n = products.down.n();
  const std::int64_t k = products.down.k();
  const std::int64_t part = segment.expert - problem_.shape.experts;
  const auto* const matrix =
      static_cast<const std::byte*>(part < 0 ? matrices_.down : matrices_.shared_down) +
      bytes((part < 0 ? segment.expert : part) * n * k);
  products.down.run(b.gate_up + bytes(segment.first * products.gate_up.n()), matrix,
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
  const std::int64_t routed = offsets[experts_];
  const auto activate = [&](std::int64_t first, std::int64_t rows, cudaStream_t on) {
    kernels.activate(b, first, rows, on);
    if (context == nullptr) return;
    context->record("activation", static_cast<std::uint64_t>(bytes(rows * intermediate)),
                    [&] { return fmt::format("{} rows x {} columns", rows, intermediate); });
  };
  assign(schedule, offsets);
  // step(products, segment, stream) for all segments, those of a lane by one launcher in their order.
  const auto launch = [&](const auto& step) {
    const bool alone = schedule.launchers == 1 || (context != nullptr && context->trace != nullptr);
    const auto part = [&](int launcher) {
      for (const Segment& segment : segments_) {
        if (!alone && segment.lane % schedule.launchers != launcher) continue;
        step(products_[static_cast<std::size_t>(launcher)], segment,
             lane_stream(segment.lane, stream));
      }
    };
    if (alone) {
      part(0);
    } else {
      team_->run(schedule.launchers, part);
    }
  };
  if (schedule.pipeline == Pipeline::kChains) {
    launch([&](Products& products, const Segment& segment, cudaStream_t on) {
      multiply_gate_up(products, segment, b, on, context);
      activate(segment.first, segment.rows, on);
      multiply_down(products, segment, b, on, context);
    });
    join(schedule, stream);
    return;
  }
  launch([&](Products& products, const Segment& segment, cudaStream_t on) {
    multiply_gate_up(products, segment, b, on, context);
  });
  join(schedule, stream);
  if (routed > 0) activate(0, routed, stream);
  fork(schedule, stream);
  launch([&](Products& products, const Segment& segment, cudaStream_t on) {
    multiply_down(products, segment, b, on, context);
  });
  join(schedule, stream);
}

}  // namespace moe::cuda
