#include "cuda/ops/routed_buffers.h"

#include "cuda/check.h"

namespace moe::cuda {
namespace {

std::uint64_t matrix_bytes(const Problem& problem, const StoredWidths& widths) {
  return static_cast<std::uint64_t>(widths.hidden * widths.intermediate) * size_of(problem.dtype);
}
std::int64_t shared_parts(const Problem& problem) {
  return with_shared_slots(problem).experts - problem.shape.experts;
}

/// A matrix of rows in device memory.
struct Rows {
  std::byte* data = nullptr;
  std::int64_t pitch = 0;  // bytes between rows
};
void copy_rows(const Rows& to, const std::byte* from, std::int64_t from_pitch, std::int64_t rows,
               std::int64_t row_bytes, cudaStream_t stream) {
  MOE_CUDA_CHECK(
      cudaMemcpy2DAsync(to.data, static_cast<std::size_t>(to.pitch), from,
                        static_cast<std::size_t>(from_pitch), static_cast<std::size_t>(row_bytes),
                        static_cast<std::size_t>(rows), cudaMemcpyDeviceToDevice, stream));
}

/// Copies matrices of experts first..end of `set`, `stride` bytes apart from `to` on: `copy` does one.
template <class Copy>
void each_expert(const ExpertSet& set, std::int64_t first, std::int64_t end, Copy&& copy) {
  for (std::int64_t expert = first; expert < end; ++expert) copy(expert - first, set.at(expert));
}

DeviceBuffer zeroed(std::uint64_t bytes, cudaStream_t stream) {
  DeviceBuffer buffer(bytes);
  if (bytes > 0) MOE_CUDA_CHECK(cudaMemsetAsync(buffer.data(), 0, bytes, stream));
  return buffer;
}

/// Down of experts first..end.
DeviceBuffer pack_down_of(const Problem& problem, const Weights& weights,
                          const StoredWidths& widths, std::int64_t first, std::int64_t end,
                          cudaStream_t stream) {
  if (first == end) return {};
  const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
  const std::uint64_t matrix = matrix_bytes(problem, widths);
  DeviceBuffer packed = zeroed(static_cast<std::uint64_t>(end - first) * matrix, stream);
  each_expert(ExpertSet(problem, weights), first, end,
              [&](std::int64_t at, const ExpertMatrices& expert) {
                copy_rows({packed.as<std::byte>() + static_cast<std::uint64_t>(at) * matrix,
                           widths.intermediate * element},
                          expert.down, expert.down_stride, problem.shape.hidden,
                          expert.width * element, stream);
              });
  return packed;
}

/// Gate and up of experts first..end.
DeviceBuffer pack_gate_up_of(const Problem& problem, const Weights& weights,
                             const StoredWidths& widths, std::int64_t first, std::int64_t end,
                             cudaStream_t stream) {
  if (first == end) return {};
  const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
  const std::uint64_t matrix = matrix_bytes(problem, widths);
  const auto matrices = static_cast<std::uint64_t>(matrices_before_activation(problem));
  DeviceBuffer packed = zeroed(static_cast<std::uint64_t>(end - first) * matrices * matrix, stream);
  const std::int64_t given = problem.shape.hidden * element;
  each_expert(
      ExpertSet(problem, weights), first, end, [&](std::int64_t at, const ExpertMatrices& expert) {
        std::byte* to = packed.as<std::byte>() + static_cast<std::uint64_t>(at) * matrices * matrix;
        for (const std::byte* from : {expert.gate, expert.up}) {
          if (from == nullptr) continue;
          copy_rows({to, widths.hidden * element}, from, given, expert.width, given, stream);
          to += matrix;
        }
      });
  return packed;
}

}  // namespace

std::uint64_t gate_up_bytes(const Problem& problem, const StoredWidths& widths) {
  return static_cast<std::uint64_t>(with_shared_slots(problem).experts *
                                    matrices_before_activation(problem)) *
         matrix_bytes(problem, widths);
}
std::uint64_t gate_up_bytes(const Problem& problem) {
  return gate_up_bytes(problem, StoredWidths::of(problem));
}

DeviceBuffer pack_gate_up(const Problem& problem, const Weights& weights,
                          const StoredWidths& widths, cudaStream_t stream) {
  return pack_gate_up_of(problem, weights, widths, 0, with_shared_slots(problem).experts, stream);
}
DeviceBuffer pack_gate_up(const Problem& problem, const Weights& weights, cudaStream_t stream) {
  return pack_gate_up(problem, weights, StoredWidths::of(problem), stream);
}

std::uint64_t shared_gate_up_bytes(const Problem& problem) {
  return static_cast<std::uint64_t>(shared_parts(problem) * matrices_before_activation(problem)) *
         matrix_bytes(problem, StoredWidths::of(problem));
}
DeviceBuffer pack_shared_gate_up(const Problem& problem, const Weights& weights,
                                 cudaStream_t stream) {
  return pack_gate_up_of(problem, weights, StoredWidths::of(problem), problem.shape.experts,
                         with_shared_slots(problem).experts, stream);
}

std::uint64_t shared_down_bytes(const Problem& problem, const StoredWidths& widths) {
  return static_cast<std::uint64_t>(shared_parts(problem)) * matrix_bytes(problem, widths);
}
std::uint64_t down_bytes(const Problem& problem, const StoredWidths& widths) {
  return static_cast<std::uint64_t>(with_shared_slots(problem).experts) *
         matrix_bytes(problem, widths);
}
DeviceBuffer pack_shared_down(const Problem& problem, const Weights& weights,
                              const StoredWidths& widths, cudaStream_t stream) {
  return pack_down_of(problem, weights, widths, problem.shape.experts,
                      with_shared_slots(problem).experts, stream);
}
DeviceBuffer pack_down(const Problem& problem, const Weights& weights, const StoredWidths& widths,
                       cudaStream_t stream) {
  return pack_down_of(problem, weights, widths, 0, with_shared_slots(problem).experts, stream);
}

}  // namespace moe::cuda
