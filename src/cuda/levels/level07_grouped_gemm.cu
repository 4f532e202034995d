// Level 07 · grouped_gemm — CUTLASS's grouped GEMM for Hopper, one launch for each of the two products.
// Builds on 05 (nothing of a forward depends on what the host knows of the routing).
// Changes   the products of all experts are one persistent kernel of CUTLASS each: TMA loads, wgmma,
//           warps that load beside warps that multiply. A small kernel of ours writes sizes, addresses
//           and strides of every expert's product from expert_offsets; the library reads them on the
//           device. Weights lie on the 64-row side of wgmma, rows on the other, so that a tile may be
//           128 or 192 rows; which, the host chooses from what a routing is expected to bring.
// Why       bytes and FLOPs are those of 04: weights 3·E_hit·H·I·b, FLOPs 6·T·K·H·I + 2·T·H·E, rows
//           padded to the tile. What changes is the rate: wgmma instead of 05's mma.sync, and no wait
//           and no 2·E_hit launches as in 04.
// Costs     SwiGLU is still a pass of its own (3·T·K·I·b bytes), gate|up a second copy of the weights,
//           tiles are the library's: an expert of few rows pays for 128. bf16 on Hopper only.
// Measured  docs/levels/level07_grouped_gemm.md
//
//   x[T,H] ─permute─▶ rows[TK,H] ─gate_up─▶ gate_up[TK,2I] ─swiglu─▶ act ─down─▶ rows[TK,H] ─combine─▶ y
//                     expert_offsets ─describe─▶ {n, m_e, k}, &W_e, &A_e, &C_e of both products
#include "cuda/check.h"
#include "cuda/level_base.h"
#include "cuda/ops/grouped_gemm_cutlass.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/routed_buffers.h"
#include "cuda/ops/swiglu.h"

namespace moe::cuda {
namespace {

/// Tensor maps take rows in multiples of 16 bytes. Where H or I is none, weights and rows are padded
/// with zeros, which add nothing to a product.
Problem padded(const Problem& problem) {
  constexpr std::int64_t kMultiple = 8;
  const auto up = [](std::int64_t size) { return (size + kMultiple - 1) / kMultiple * kMultiple; };
  Problem wider = problem;
  wider.shape.hidden = up(problem.shape.hidden);
  wider.shape.intermediate = up(problem.shape.intermediate);
  return wider;
}

struct Buffers {
  RoutedBuffers routed;       // of the padded problem
  std::byte* wide = nullptr;  // [T,H'] x, later y; only where H' > H
};

template <class Memory>
Buffers carve(Memory& memory, const Problem& problem, const DeviceFacts& facts) {
  const Problem wider = padded(problem);
  Buffers b;
  b.routed = carve_routed_buffers(memory, wider, facts);
  if (wider.shape.hidden > problem.shape.hidden) {
    b.wide = memory.template take<std::byte>(problem.shape.tokens * wider.shape.hidden *
                                             static_cast<std::int64_t>(size_of(problem.dtype)));
  }
  return b;
}

CutlassGemmSpec gate_up_spec(const Shape& shape) {
  return {.groups = shape.experts,
          .n = 2 * shape.intermediate,
          .k = shape.hidden,
          .a_stride = shape.hidden,
          .c_stride = 2 * shape.intermediate};
}
CutlassGemmSpec down_spec(const Shape& shape) {
  return {.groups = shape.experts,
          .n = shape.hidden,
          .k = shape.intermediate,
          .a_stride = 2 * shape.intermediate,  // act lies in the gate half
          .c_stride = shape.hidden};
}

/// A matrix of rows in device memory.
struct Rows {
  void* data = nullptr;
  std::uint64_t pitch = 0;  // bytes between rows
};
void copy_rows(const Rows& to, const Rows& from, std::int64_t rows, std::uint64_t row_bytes,
               cudaStream_t stream) {
  MOE_CUDA_CHECK(cudaMemcpy2DAsync(to.data, to.pitch, from.data, from.pitch, row_bytes,
                                   static_cast<std::size_t>(rows), cudaMemcpyDeviceToDevice,
                                   stream));
}

class GroupedGemmLevel final : public CudaLevel {
 public:
  [[nodiscard]] Features features() const override { return {.routers = true}; }
  [[nodiscard]] std::string unsupported(const Problem& problem,
                                        const ExecutionOptions& execution) const override {
    if (problem.dtype != DType::kBF16) {
      return "its products are of bf16 on tensor cores; fp32 would be rounded";
    }
    const DeviceFacts& facts = device_of(execution).facts();
    if (facts.major != 9) {
      return fmt::format("its kernels are for sm_90a (Hopper); {} has compute capability {}.{}",
                         facts.name, facts.major, facts.minor);
    }
    const Shape wider = padded(problem).shape;
    for (const CutlassGemmSpec& spec : {gate_up_spec(wider), down_spec(wider)}) {
      if (std::string reason = cutlass_unsupported(spec); !reason.empty()) return reason;
    }
    return CudaLevel::unsupported(problem, execution);
  }

  [[nodiscard]] MemoryNeeds memory(const Problem& problem,
                                   const ExecutionOptions& execution) const override {
    const DeviceFacts& facts = device_of(execution).facts();
    ArenaPlan plan;
    static_cast<void>(carve(plan, problem, facts));
    const Problem wider = padded(problem);
    // down is copied only where its rows or its address are no multiples of 16 bytes.
    return {.workspace = plan.bytes(),
            .prepared = kBasePrepared + gate_up_bytes(wider) + gate_up_bytes(wider) / 2 +
                        2 * CutlassGemm::device_bytes(problem.shape.experts, facts)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    wider_ = padded(problem).shape;
    machine_ = {device_->facts().multiprocessors, device_->facts().l2_bytes};
    pack_weights();
    gate_up_.emplace(gate_up_spec(wider_), device_->facts());
    down_.emplace(down_spec(wider_), device_->facts());
    device_->synchronise();  // packing is part of prepare's time
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const Buffers b = carve(context.arena, problem_, device_->facts());
    const std::int64_t rows = x.dim(0) * problem_.shape.top_k;
    route(context, x, 0, x.dim(0),
          {b.routed.logits, b.routed.topk_idx, b.routed.topk_weights, b.routed.permutation});
    permute(context, x, b);
    multiply(context, "gemm_gate_up", *gate_up_, rows);
    swiglu(context, rows, b);
    multiply(context, "gemm_down", *down_, rows);
    combine(context, y, b);
  }

  [[nodiscard]] std::string uncapturable() const override { return {}; }

  [[nodiscard]] std::string plan() const override {
    const Shape& shape = problem_.shape;
    const std::int64_t rows = shape.routed_rows();
    const auto given = static_cast<double>(3 * shape.hidden * shape.intermediate);
    const auto stored = static_cast<double>(3 * wider_.hidden * wider_.intermediate);
    return fmt::format("{}, gate|up in {} tiles, down in {} tiles, weights padded by {:.1f} %, {}",
                       cutlass_version(), name_of(tile_of(*gate_up_, rows)),
                       name_of(tile_of(*down_, rows)), (stored / given - 1) * 100,
                       CudaLevel::plan());
  }

 private:
  [[nodiscard]] CutlassTile tile_of(const CutlassGemm& gemm, std::int64_t rows) const {
    return choose_cutlass_tile(gemm.spec(), rows, machine_);
  }
  [[nodiscard]] bool pads_hidden() const { return wider_.hidden > problem_.shape.hidden; }
  [[nodiscard]] bool pads() const {
    return pads_hidden() || wider_.intermediate > problem_.shape.intermediate;
  }

  /// gate_up_weights_ [E,2·I',H'], and down as it is or as down_weights_ [E,H',I'].
  void pack_weights() {
    const bool down_is_aligned =
        reinterpret_cast<std::uintptr_t>(weights_.down.data) % kTensorMapAlignment == 0;
    down_data_ = weights_.down.data;
    if (!pads()) {
      gate_up_weights_ = pack_gate_up(problem_, weights_, stream());
    } else {
      pack_padded_gate_up();
    }
    if (!pads() && down_is_aligned) return;
    pack_down();
    down_data_ = down_weights_.data();
  }

  void pack_padded_gate_up() {
    const Shape& shape = problem_.shape;
    gate_up_weights_ = DeviceBuffer(gate_up_bytes(padded(problem_)));
    MOE_CUDA_CHECK(cudaMemsetAsync(gate_up_weights_.data(), 0, gate_up_weights_.size(), stream()));
    const std::uint64_t given = element_bytes(shape.hidden);
    const std::uint64_t pitch = element_bytes(wider_.hidden);
    const std::uint64_t half = element_bytes(wider_.intermediate * wider_.hidden);
    for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
      auto* to = gate_up_weights_.as<std::byte>() + static_cast<std::uint64_t>(expert) * 2 * half;
      const std::uint64_t from = element_bytes(expert * shape.intermediate * shape.hidden);
      copy_rows({to, pitch}, {weights_.gate.as<std::byte>() + from, given}, shape.intermediate,
                given, stream());
      copy_rows({to + half, pitch}, {weights_.up.as<std::byte>() + from, given}, shape.intermediate,
                given, stream());
    }
  }

  void pack_down() {
    const Shape& shape = problem_.shape;
    const std::uint64_t given = element_bytes(shape.intermediate);
    const std::uint64_t pitch = element_bytes(wider_.intermediate);
    const std::uint64_t matrix = element_bytes(wider_.hidden * wider_.intermediate);
    down_weights_ = DeviceBuffer(static_cast<std::size_t>(shape.experts) * matrix);
    if (pads()) {
      MOE_CUDA_CHECK(cudaMemsetAsync(down_weights_.data(), 0, down_weights_.size(), stream()));
    }
    for (std::int64_t expert = 0; expert < shape.experts; ++expert) {
      copy_rows(
          {down_weights_.as<std::byte>() + static_cast<std::uint64_t>(expert) * matrix, pitch},
          {weights_.down.as<std::byte>() +
               element_bytes(expert * shape.hidden * shape.intermediate),
           given},
          shape.hidden, given, stream());
    }
  }

  /// rows[T·K,H'] by expert, and the description of every expert's two products.
  void permute(Context& context, const TensorView& x, const Buffers& b) {
    const Shape& shape = problem_.shape;
    const std::int64_t tokens = x.dim(0);
    const std::uint64_t row_bytes = element_bytes(wider_.hidden);
    describe_groups(b.routed.permutation.expert_offsets, *gate_up_,
                    {b.routed.rows, gate_up_weights_.data(), b.routed.gate_up}, *down_,
                    {b.routed.gate_up, down_data_, b.routed.rows}, stream());
    const void* source = x.data;
    if (pads_hidden()) {
      const std::uint64_t given = element_bytes(shape.hidden);
      MOE_CUDA_CHECK(
          cudaMemsetAsync(b.wide, 0, static_cast<std::size_t>(tokens) * row_bytes, stream()));
      copy_rows({b.wide, row_bytes}, {x.data, given}, tokens, given, stream());
      source = b.wide;
    }
    permute_rows(source, b.routed.permutation.dst_row, tokens, shape.top_k,
                 static_cast<std::int64_t>(row_bytes), b.routed.rows, stream());
    context.record("permute", static_cast<std::uint64_t>(tokens * shape.top_k) * row_bytes, [&] {
      return fmt::format("{} rows of {} bytes by expert", tokens * shape.top_k, row_bytes);
    });
  }

  void multiply(Context& context, const char* op, CutlassGemm& gemm, std::int64_t rows) {
    const CutlassTile tile = tile_of(gemm, rows);
    gemm.run(tile, stream());
    context.record(op, element_bytes(rows * gemm.spec().n), [&] {
      return fmt::format("all experts, {} rows n={} k={}, {} tiles", rows, gemm.spec().n,
                         gemm.spec().k, name_of(tile));
    });
  }

  void swiglu(Context& context, std::int64_t rows, const Buffers& b) {
    const std::int64_t intermediate = wider_.intermediate;
    swiglu_rows(problem_.dtype, b.routed.gate_up, rows, intermediate, b.routed.gate_up,
                2 * intermediate, stream());
    context.record("swiglu", element_bytes(rows * intermediate),
                   [&] { return fmt::format("{} rows x {} columns", rows, intermediate); });
  }

  void combine(Context& context, const TensorView& y, const Buffers& b) {
    const Shape& shape = problem_.shape;
    const std::int64_t tokens = y.dim(0);
    unpermute_rows(problem_.dtype, b.routed.rows, b.routed.permutation.dst_row,
                   b.routed.topk_weights, tokens, shape.top_k, wider_.hidden,
                   pads_hidden() ? b.wide : y.data, stream());
    if (pads_hidden()) {
      const std::uint64_t given = element_bytes(shape.hidden);
      copy_rows({y.data, given}, {b.wide, element_bytes(wider_.hidden)}, tokens, given, stream());
    }
    context.record("unpermute", y.bytes(), [&] {
      return fmt::format("{} tokens, weighted sum of {} rows", tokens, shape.top_k);
    });
  }

  Shape wider_;  // H and I padded
  TileMachine machine_;
  DeviceBuffer gate_up_weights_;
  DeviceBuffer down_weights_;  // empty where the caller's can be read as they are
  const void* down_data_ = nullptr;
  std::optional<CutlassGemm> gate_up_;
  std::optional<CutlassGemm> down_;
};

}  // namespace

std::unique_ptr<Level> make_level07_grouped_gemm() {
  return std::make_unique<GroupedGemmLevel>();
}

}  // namespace moe::cuda
