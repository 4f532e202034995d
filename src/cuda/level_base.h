// What every CUDA level has: its problem, its device, the router.
#pragma once

#include <optional>
#include <string>

#include "core/level.h"
#include "cuda/backend.h"
#include "cuda/ops/gemm_cublaslt.h"
#include "cuda/ops/permute.h"

namespace moe::cuda {

class CudaLevel : public Level {
 public:
  [[nodiscard]] std::string unsupported(const Problem& problem,
                                        const ExecutionOptions&) const override;
  [[nodiscard]] std::string isa() const override;
  [[nodiscard]] int threads() const override { return 1; }  // of the host, which launches
  [[nodiscard]] std::string plan() const override { return cublaslt_version(); }

 protected:
  /// Bytes that keep() allocates.
  static constexpr std::uint64_t kBasePrepared = CublasLt::kWorkspaceBytes;
  static CudaDevice& device_of(const ExecutionOptions& execution) {
    return static_cast<CudaDevice&>(*execution.device);
  }

  /// The part of prepare() that all levels share.
  void keep(const Problem& problem, const Weights& weights, const ExecutionOptions& execution);

  /// Where the router writes. Views: the memory is the level's. With expert_offsets null the rows are
  /// not sorted by expert.
  struct Routing {
    float* logits = nullptr;           // [T,E]
    std::int32_t* topk_idx = nullptr;  // [T,K]
    float* topk_weights = nullptr;     // [T,K]
    Permutation permutation = {};
  };
  /// logits[tokens,E] = x[first_token.., H] · router^T, queued on `stream`.
  void router_product(const TensorView& x, std::int64_t first_token, std::int64_t tokens,
                      float* logits, cudaStream_t stream);
  /// From logits to choices and, where wanted, the permutation, queued on `stream`.
  void choose(std::int64_t tokens, const Routing& out, cudaStream_t stream);
  /// Routes `tokens` rows of x from first_token on.
  void route(Context& context, const TensorView& x, std::int64_t first_token, std::int64_t tokens,
             const Routing& out);

  [[nodiscard]] std::uint64_t element_bytes(std::int64_t count) const {
    return static_cast<std::uint64_t>(count) * size_of(problem_.dtype);
  }
  [[nodiscard]] cudaStream_t stream() const { return device_->stream(); }

  Problem problem_;
  Weights weights_;
  CudaDevice* device_ = nullptr;
  std::optional<CublasLt> library_;

 private:
  std::optional<Matmul> router_;
};

}  // namespace moe::cuda
