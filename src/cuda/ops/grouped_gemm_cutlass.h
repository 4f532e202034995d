// CUTLASS's Hopper grouped GEMM behind an owning type: everything specific to that library is in this
// pair of files, and only the .cu includes its headers.
//
// For every group e at once, in one launch: C[e] = A[e] · W[e]^T, bf16 in and out, fp32 accumulation.
// A and C are matrices of all rows, grouped: rows offsets[e] .. offsets[e+1] are those of group e, W is
// [groups, n, k]. The offsets are read on the device, so the host knows no group's size, waits for
// nothing and can capture both calls in a graph.
//
// Built without CUTLASS, cutlass_unsupported() says so and nothing else may be called.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "cuda/backend.h"
#include "cuda/ops/cutlass_tile.h"

namespace moe::cuda {

/// Addresses and rows of what is multiplied are multiples of this many bytes.
inline constexpr std::size_t kTensorMapAlignment = 16;

/// "" when this build can multiply these; else the reason as a sentence.
[[nodiscard]] std::string cutlass_unsupported(const CutlassGemmSpec& spec);

/// "CUTLASS 4.2.0"
[[nodiscard]] std::string cutlass_version();

/// One grouped GEMM with its description of the groups in device memory of its own.
class CutlassGemm {
 public:
  /// Throws kUnsupported with cutlass_unsupported()'s reason.
  CutlassGemm(const CutlassGemmSpec& spec, const DeviceFacts& facts);
  CutlassGemm(CutlassGemm&&) noexcept;
  CutlassGemm& operator=(CutlassGemm&&) noexcept;
  ~CutlassGemm();

  [[nodiscard]] const CutlassGemmSpec& spec() const;
  /// Bytes of device memory that one object holds.
  [[nodiscard]] static std::uint64_t device_bytes(std::int64_t groups, const DeviceFacts& facts);

  /// Where the operands of run() are, multiples of kTensorMapAlignment.
  struct Operands {
    const void* a = nullptr;
    const void* w = nullptr;
    void* c = nullptr;
    /// Groups from `shared_first` on have their matrices here instead.
    const void* shared_w = nullptr;
    std::int64_t shared_first = INT64_MAX;
  };
  /// Multiplies what the last describe_groups() said, which was queued on the same stream.
  void run(CutlassTile tile, cudaStream_t stream);

 private:
  friend void describe_groups(const std::int32_t* offsets, CutlassGemm& first,
                              const Operands& of_first, CutlassGemm& second,
                              const Operands& of_second, cudaStream_t stream);
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes sizes, addresses and strides of every group of both products where they read them, from
/// offsets[groups + 1] in device memory.
void describe_groups(const std::int32_t* offsets, CutlassGemm& first,
                     const CutlassGemm::Operands& of_first, CutlassGemm& second,
                     const CutlassGemm::Operands& of_second, cudaStream_t stream);

}  // namespace moe::cuda
