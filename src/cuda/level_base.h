// What every CUDA level has: its problem, its device, the router.
#pragma once

#include <optional>
#include <string>

#include "core/expert_set.h"
#include "core/level.h"
#include "cuda/backend.h"
#include "cuda/ops/gemm_cublaslt.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/routed_buffers.h"
#include "cuda/ops/routing.h"
#include "cuda/ops/row_products.h"
#include "cuda/ops/transient.h"

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
  /// not sorted by expert. E' and K' are of with_shared_slots(); what a problem does not have is null.
  struct Routing {
    float* logits = nullptr;           // [T,E]; not with given routes
    std::int32_t* topk_idx = nullptr;  // [T,K'] -1: the slot is not used
    float* topk_weights = nullptr;     // [T,K']
    Permutation permutation = {};
    float* shared_weights = nullptr;  // [T] of Problem::shared_switch
  };
  static Routing routing_of(const RoutedBuffers& b) {
    return {b.logits, b.topk_idx, b.topk_weights, b.permutation, b.shared_weights};
  }
  /// The same in buffers that forward allocates: the lesson of levels 0 to 2.
  struct TransientRouting {
    TransientBuffer logits, shared_weights, topk_idx, topk_weights;
    [[nodiscard]] Routing views() const {
      return {.logits = logits.as<float>(),
              .topk_idx = topk_idx.as<std::int32_t>(),
              .topk_weights = topk_weights.as<float>(),
              .shared_weights = shared_weights.as<float>()};
    }
  };
  [[nodiscard]] TransientRouting take_routing(Context& context, const MemoryPool& pool,
                                              std::int64_t tokens) const;
  /// Bytes that it takes at most.
  [[nodiscard]] static std::uint64_t routing_footprint(const Problem& problem);
  /// logits[tokens,E] = x[first_token.., H] · router^T and, with a switch, shared_weights, queued on
  /// `stream`. What they are and, of given routes, where: what choosing starts from.
  RoutingInputs router_products(const Routes& routes, const TensorView& x, std::int64_t first_token,
                                std::int64_t tokens, const Routing& out, cudaStream_t stream);
  /// From there to choices and, where wanted, the permutation, queued on `stream`.
  void choose(const RoutingInputs& in, std::int64_t tokens, const Routing& out,
              cudaStream_t stream);
  /// Routes `tokens` rows of x from first_token on.
  void route(Context& context, const TensorView& x, std::int64_t first_token, std::int64_t tokens,
             const Routing& out);

  /// y[tokens,H] from y_rows[tokens·K',H] in the order of the slots, queued on `stream`.
  void combine_slots_of(const void* y_rows, const std::int32_t* topk_idx, const float* topk_weights,
                        std::int64_t tokens, void* y, cudaStream_t stream) const;
  /// What the block adds to products of single rows; nothing where it adds nothing.
  [[nodiscard]] RowExtras row_extras(const std::int32_t* topk_idx, const float* topk_weights) const;
  /// SwiGLU of gate and up as they are: no biases, no weight on the input.
  [[nodiscard]] bool plain_activation() const {
    return problem_.activation == Activation{} && !problem_.expert_bias &&
           !problem_.router.weight_on_input;
  }
  [[nodiscard]] std::uint64_t element_bytes(std::int64_t count) const {
    return static_cast<std::uint64_t>(count) * size_of(problem_.dtype);
  }
  /// Where a forward queues its work: the device's stream, or the one it is being recorded on.
  [[nodiscard]] cudaStream_t stream() const {
    return elsewhere_ != nullptr ? elsewhere_ : device_->stream();
  }
  /// While it lives, stream() is another one.
  class QueueElsewhere {
   public:
    QueueElsewhere(CudaLevel& level, cudaStream_t stream) : level_(level) {
      level_.elsewhere_ = stream;
    }
    QueueElsewhere(const QueueElsewhere&) = delete;
    QueueElsewhere& operator=(const QueueElsewhere&) = delete;
    ~QueueElsewhere() { level_.elsewhere_ = nullptr; }

   private:
    CudaLevel& level_;
  };

  Problem problem_;
  Shape routed_;  // with_shared_slots()
  Weights weights_;
  CudaDevice* device_ = nullptr;
  std::optional<CublasLt> library_;

 private:
  std::optional<Matmul> logits_;  // not with given routes
  std::optional<LayerRouter> router_;
  cudaStream_t elsewhere_ = nullptr;
};

}  // namespace moe::cuda
