// cuBLASLt matmul behind owning types: everything specific to that library is in this pair of files.
//
// C[m,n] = A[m,k] · W[n,k]^T, row-major, fp32 accumulation. n, k, types and strides of a Matmul are
// fixed when it is made; m and the batch are not. The library's choice of kernel costs tens of
// microseconds to ask for, so it is asked once per range of m (row_bucket) and kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "cuda/backend.h"
#include "moe/config.h"

namespace moe::cuda {

/// The library's handle and its workspace on the device. Matmuls of one handle run one after
/// another on one stream: they share the workspace.
class CublasLt {
 public:
  CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;
  ~CublasLt();

  /// NVIDIA's recommendation for Hopper.
  static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

 private:
  friend class Matmul;
  struct State;
  std::unique_ptr<State> state_;
};

struct MatmulSpec {
  std::int64_t n = 0;
  std::int64_t k = 0;
  DType in = DType::kF32;     // A and W
  DType out = DType::kF32;    // C
  std::int64_t a_stride = 0;  // elements between rows of A; 0 = k
  // Of a batch: elements between the matrices of neighbours. W, A and C of entry b are at b · these.
  std::int64_t batch_stride_w = 0;
  std::int64_t batch_stride_a = 0;
  std::int64_t batch_stride_c = 0;
};

/// Upper end of the range of row counts that share one choice of kernel: m itself up to 64, then at
/// most 1/32 above m. NOTE: with ranges of 1/4 the choice for 1280 rows also served 1030.
[[nodiscard]] std::int64_t row_bucket(std::int64_t m);

class Matmul {
 public:
  Matmul(CublasLt& library, const MatmulSpec& spec);
  Matmul(Matmul&&) noexcept;
  Matmul& operator=(Matmul&&) noexcept;
  ~Matmul();

  [[nodiscard]] std::int64_t n() const;
  [[nodiscard]] std::int64_t k() const;
  /// Chooses for every m up to `most_rows`, so that run() decides nothing.
  void choose_up_to(std::int64_t most_rows);
  /// m >= 1, batch >= 1. Addresses need not be aligned beyond their element.
  void run(const void* a, const void* w, void* c, std::int64_t m, cudaStream_t stream,
           std::int64_t batch = 1);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// "cuBLASLt 13.1.0"
[[nodiscard]] std::string cublaslt_version();

}  // namespace moe::cuda
