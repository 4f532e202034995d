// oneDNN matmul behind owning types: everything specific to that library is in this pair of files.
//
// C[m,n] (fp32) = A[m,k] · W[n,k]^T with W repacked once. Sizes and strides of a Gemm are fixed
// when it is made, which costs tens of microseconds or more (descriptor, code generation); running
// it only changes pointers. Built without oneDNN, unavailable() says so and nothing else may be
// called.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/isa.h"
#include "moe/config.h"

struct dnnl_memory;
struct dnnl_primitive;

namespace moe::cpu::onednn {

/// "" when matmuls of `dtype` can run without exceeding `ceiling`; else the reason as a sentence.
///
/// oneDNN fixes its instruction set for the whole process when it is first used. The first
/// claim_isa() decides: a later, lower ceiling is refused here, and a later, higher one runs with
/// the lower set (isa_in_use() reports it).
[[nodiscard]] std::string unavailable(DType dtype, Isa ceiling);

/// Caps oneDNN's instruction set at `ceiling` if this process has not used oneDNN yet. Throws
/// kUnsupported with unavailable()'s sentence when the ceiling can no longer be held.
void claim_isa(DType dtype, Isa ceiling);

/// The tier that oneDNN may use in this process, after claim_isa().
[[nodiscard]] Isa isa_in_use();

/// "oneDNN 2.6.3"
[[nodiscard]] std::string version();

/// Throws kInternal unless `status`, from GemmCall::run(), is success.
void throw_on_failure(int status);

/// Sets the number of OpenMP threads for this scope. oneDNN reads it when a Gemm is made and when
/// it runs; both must see the same number.
class ThreadScope {
 public:
  explicit ThreadScope(int threads);
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;
  ~ThreadScope();

 private:
  int previous_;
};

/// How oneDNN wants W[n,k] stored. The same layout serves every m.
class WeightLayout {
 public:
  /// Asks oneDNN with `typical_rows` as m, for Gemms that run on `threads` threads.
  WeightLayout(DType dtype, std::int64_t n, std::int64_t k, std::int64_t typical_rows, int threads);
  WeightLayout(WeightLayout&&) noexcept;
  WeightLayout& operator=(WeightLayout&&) noexcept;
  ~WeightLayout();

  [[nodiscard]] std::size_t bytes() const;  ///< of one packed matrix, padding included
  [[nodiscard]] Isa isa() const;            ///< of the kernels chosen for it
  [[nodiscard]] std::int64_t n() const;
  [[nodiscard]] std::int64_t k() const;

 private:
  friend class Gemm;
  friend class PackedMatrix;
  struct State;
  std::unique_ptr<State> state_;
};

/// One W in the library's layout, in memory that the caller owns and keeps. Safe to read from many
/// threads at once.
class PackedMatrix {
 public:
  /// Packs rows[n,k] (row-major, layout's dtype) into `storage`, layout.bytes() at 64-byte
  /// alignment.
  PackedMatrix(const WeightLayout& layout, const void* rows, void* storage);
  PackedMatrix(PackedMatrix&& other) noexcept;
  PackedMatrix& operator=(PackedMatrix&& other) noexcept;
  PackedMatrix(const PackedMatrix&) = delete;
  PackedMatrix& operator=(const PackedMatrix&) = delete;
  ~PackedMatrix();

 private:
  friend class GemmCall;
  dnnl_memory* memory_ = nullptr;
};

/// What a Gemm and a GemmCall keep, for predictions: 43 KiB resident per primitive with AVX-512 fp32
/// kernels and less with bf16 (difference of VmRSS over 200 of them), and three argument objects.
inline constexpr std::uint64_t kGemmBytes = 48 << 10;
inline constexpr std::uint64_t kGemmCallBytes = 4 << 10;

/// The recorded matmul for one m. Immutable; may run in several threads at once as long as each
/// brings its own GemmCall and scratch memory.
class Gemm {
 public:
  /// A[m,k] and C[m,n] are dense. NOTE: with any other row stride oneDNN 2.6 takes its reference
  /// implementation, plain loops, without a word.
  Gemm(const WeightLayout& layout, std::int64_t m, int threads);
  Gemm(Gemm&&) noexcept;
  Gemm& operator=(Gemm&&) noexcept;
  ~Gemm();

  [[nodiscard]] std::size_t scratch_bytes() const;
  [[nodiscard]] const std::string& implementation() const;  ///< oneDNN's name of the chosen kernel

 private:
  friend class GemmCall;
  struct State;
  std::unique_ptr<State> state_;
};

/// Argument objects of one thread for one Gemm, made once. run() sets pointers and executes: no
/// allocation of ours.
///
/// NOTE: the scratch memory is ours, one block per thread. With the library's own scratchpad, one
/// primitive run by two threads at once gives wrong numbers without an error.
class GemmCall {
 public:
  explicit GemmCall(const Gemm& gemm);
  GemmCall(GemmCall&& other) noexcept;
  GemmCall& operator=(GemmCall&& other) noexcept;
  GemmCall(const GemmCall&) = delete;
  GemmCall& operator=(const GemmCall&) = delete;
  ~GemmCall();

  /// `scratch` has at least gemm.scratch_bytes() at 64-byte alignment; may be null when that is 0.
  /// Returns oneDNN's status for throw_on_failure(); never throws, so that it can run inside a
  /// parallel region.
  [[nodiscard]] int run(const void* a, const PackedMatrix& w, float* c, void* scratch) noexcept;

 private:
  void release() noexcept;

  const dnnl_primitive* primitive_ = nullptr;  // owned by the Gemm
  dnnl_memory* a_ = nullptr;
  dnnl_memory* c_ = nullptr;
  dnnl_memory* scratch_ = nullptr;
};

}  // namespace moe::cpu::onednn
