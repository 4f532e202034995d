// cuBLASLt matmul behind owning types: everything specific to that library is in this pair of files.
//
// C[m,n] = A[m,k] · W[n,k]^T, row-major, fp32 accumulation. n, k, types and strides of a Matmul are
// fixed when it is made; m and the batch are not. The library's choice of kernel costs tens of
// microseconds to ask for, so it is asked once per range of m (row_bucket) and kept. Whoever has
// timed the library's other candidates can put one of them in its place (prefer).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/backend.h"
#include "moe/config.h"

namespace moe::cuda {

/// The library's handle and its workspace on the device. Matmuls of one handle share the workspace:
/// they run one after another, or at once in different lanes (MatmulSpec::lanes).
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
  DType in = DType::kF32;     // A and W, unless they are
  bool e4m3 = false;          // FP8 (e4m3), with fast accumulation; n and k are multiples of 16
  DType out = DType::kF32;    // C
  std::int64_t a_stride = 0;  // elements between rows of A; 0 = k
  // Of a batch: elements between the matrices of neighbours. W, A and C of entry b are at b · these.
  std::int64_t batch_stride_w = 0;
  std::int64_t batch_stride_a = 0;
  std::int64_t batch_stride_c = 0;
  /// Calls that may run at once, each with its part of the workspace.
  int lanes = 1;
  // Of e4m3: one factor for all of A and of W, in device memory; null = 1.
  const float* scale_a = nullptr;
  const float* scale_w = nullptr;
};

/// One of the library's kernels with its parameters. Bits of the library: meaningful for the same
/// version of it on the same kind of device.
struct MatmulAlgorithm {
  std::array<std::uint64_t, 8> bits{};
  bool operator==(const MatmulAlgorithm&) const = default;
};
/// "algorithm 66, tile 15, stages 36, cluster 2, split k 1": numbers of the library's enums.
[[nodiscard]] std::string describe(const MatmulAlgorithm& algorithm);

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
  /// The library's proposals for m rows with 16-byte accesses, its first choice first, at most
  /// `most`; none when strides do not allow such accesses.
  [[nodiscard]] std::vector<MatmulAlgorithm> candidates(std::int64_t m, int most) const;
  /// Takes `algorithm` for first <= m <= last wherever 16-byte accesses are possible. Returns whether
  /// the library accepts it for all of these m; where it does not, nothing changes.
  bool prefer(std::int64_t first, std::int64_t last, const MatmulAlgorithm& algorithm);
  /// Forgets what prefer() set.
  void prefer_nothing();
  /// The choices of a Matmul with the same spec in place of one's own. Two threads may then run the
  /// two at once, in different lanes.
  void take_choices(const Matmul& other);

  /// m >= 1, batch >= 1. Addresses need not be aligned beyond their element.
  void run(const void* a, const void* w, void* c, std::int64_t m, cudaStream_t stream,
           std::int64_t batch = 1, int lane = 0);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// "cuBLASLt 13.1.0"
[[nodiscard]] std::string cublaslt_version();

}  // namespace moe::cuda
