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
#include "cuda/ops/grouped_gemm_cutlass.h"
#include "cuda/ops/routed_buffers.h"
#include "cuda/ops/routed_steps.h"
#include "cuda/replayed_level.h"

namespace moe::cuda {
namespace {

/// Tensor maps take rows in multiples of 16 bytes. Where H or I is none, weights and rows are padded
/// with zeros, which add nothing to a product.
StoredWidths padded(const Problem& problem) {
  constexpr std::int64_t kMultiple = 8;
  const auto up = [](std::int64_t size) { return (size + kMultiple - 1) / kMultiple * kMultiple; };
  return {up(problem.shape.hidden), up(problem.shape.intermediate)};
}

struct Buffers {
  RoutedBuffers routed;       // with padded rows
  std::byte* wide = nullptr;  // [T,H'] x, later y; only where H' > H
};

template <class Memory>
Buffers carve(Memory& memory, const Problem& problem, const DeviceFacts& facts) {
  const StoredWidths wider = padded(problem);
  Buffers b;
  b.routed = carve_routed_buffers(memory, problem, facts, wider);
  if (wider.hidden > problem.shape.hidden) {
    b.wide = memory.template take<std::byte>(problem.shape.tokens * wider.hidden *
                                             static_cast<std::int64_t>(size_of(problem.dtype)));
  }
  return b;
}

CutlassGemmSpec gate_up_spec(const Problem& problem) {
  const StoredWidths wider = padded(problem);
  const std::int64_t columns = matrices_before_activation(problem) * wider.intermediate;
  return {.groups = with_shared_slots(problem).experts,
          .n = columns,
          .k = wider.hidden,
          .a_stride = wider.hidden,
          .c_stride = columns};
}
CutlassGemmSpec down_spec(const Problem& problem) {
  const StoredWidths wider = padded(problem);
  return {.groups = with_shared_slots(problem).experts,
          .n = wider.hidden,
          .k = wider.intermediate,
          .a_stride = matrices_before_activation(problem) * wider.intermediate,
          .c_stride = wider.hidden};
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

class GroupedGemmLevel final : public ReplayedLevel {
 public:
  [[nodiscard]] Features features() const override { return Features::all(); }
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
    for (const CutlassGemmSpec& spec : {gate_up_spec(problem), down_spec(problem)}) {
      if (std::string reason = cutlass_unsupported(spec); !reason.empty()) return reason;
    }
    return CudaLevel::unsupported(problem, execution);
  }

  [[nodiscard]] MemoryNeeds memory(const Problem& problem,
                                   const ExecutionOptions& execution) const override {
    const DeviceFacts& facts = device_of(execution).facts();
    ArenaPlan plan;
    static_cast<void>(carve(plan, problem, facts));
    const StoredWidths wider = padded(problem);
    const std::int64_t experts = with_shared_slots(problem).experts;
    // The routed experts' down is copied only where its rows or its address are no multiples of 16 bytes.
    return {.workspace = plan.bytes(),
            .prepared = kBasePrepared + gate_up_bytes(problem, wider) + down_bytes(problem, wider) +
                        (problem.expert_bias ? bias_bytes(problem) : 0) +
                        2 * CutlassGemm::device_bytes(experts, facts) + kGraphsPrepared};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    keep_launch(execution);
    wider_ = padded(problem);
    machine_ = {device_->facts().multiprocessors, device_->facts().l2_bytes};
    pack_weights();
    gate_up_.emplace(gate_up_spec(problem), device_->facts());
    down_.emplace(down_spec(problem), device_->facts());
    device_->synchronise();  // packing is part of prepare's time
  }

  [[nodiscard]] std::string plan() const override {
    const Shape& shape = problem_.shape;
    const std::int64_t rows = routed_.routed_rows();
    const auto given = static_cast<double>(3 * shape.hidden * shape.intermediate);
    const auto stored = static_cast<double>(3 * wider_.hidden * wider_.intermediate);
    return fmt::format("{}, gate|up in {} tiles, down in {} tiles, weights padded by {:.1f} %, {}",
                       cutlass_version(), name_of(tile_of(*gate_up_, rows)),
                       name_of(tile_of(*down_, rows)), (stored / given - 1) * 100,
                       CudaLevel::plan());
  }

 private:
  void queue(Context& context, const TensorView& x, const TensorView& y) override {
    const Buffers b = carve(context.arena, problem_, device_->facts());
    const std::int64_t rows = x.dim(0) * routed_.top_k;
    route(context, x, 0, x.dim(0), routing_of(b.routed));
    permute(context, x, b);
    multiply(context, "gemm_gate_up", *gate_up_, rows);
    activate(context, rows, b);
    multiply(context, "gemm_down", *down_, rows);
    combine(context, y, b);
  }

  [[nodiscard]] CutlassTile tile_of(const CutlassGemm& gemm, std::int64_t rows) const {
    return choose_cutlass_tile(gemm.spec(), rows, machine_);
  }
  [[nodiscard]] bool pads_hidden() const { return wider_.hidden > problem_.shape.hidden; }
  [[nodiscard]] bool pads() const {
    return pads_hidden() || wider_.intermediate > problem_.shape.intermediate;
  }

  static std::uint64_t bias_bytes(const Problem& problem) {
    return static_cast<std::uint64_t>(problem.shape.experts * padded(problem).hidden) *
           sizeof(float);
  }

  /// gate_up_weights_ [E',M·I',H'], down_weights_ [P,H',I'] or, where the caller's cannot be read as it is,
  /// [E',H',I'], and the bias of padded rows.
  void pack_weights() {
    gate_up_weights_ = pack_gate_up(problem_, weights_, wider_, stream());
    const bool readable =
        !pads() && reinterpret_cast<std::uintptr_t>(weights_.down.data) % kTensorMapAlignment == 0;
    down_weights_ = readable ? pack_shared_down(problem_, weights_, wider_, stream())
                             : pack_down(problem_, weights_, wider_, stream());
    operands_.gate_up = {.w = gate_up_weights_.data()};
    operands_.down = {.w = readable ? weights_.down.data : down_weights_.data()};
    if (readable) {
      operands_.down.shared_w = down_weights_.data();
      operands_.down.shared_first = problem_.shape.experts;
    }
    if (problem_.expert_bias && pads_hidden()) {
      down_bias_ = DeviceBuffer(bias_bytes(problem_));
      MOE_CUDA_CHECK(cudaMemsetAsync(down_bias_.data(), 0, down_bias_.size(), stream()));
      const auto bytes = [](std::int64_t columns) {
        return static_cast<std::uint64_t>(columns) * sizeof(float);
      };
      copy_rows({down_bias_.data(), bytes(wider_.hidden)},
                {weights_.down_bias.data, bytes(problem_.shape.hidden)}, problem_.shape.experts,
                bytes(problem_.shape.hidden), stream());
    }
    steps_ = RoutedSteps(problem_, weights_, wider_, down_bias_.as<const float>());
  }

  /// rows[T·K,H'] by expert, and the description of every expert's two products.
  void permute(Context& context, const TensorView& x, const Buffers& b) {
    const std::int64_t tokens = x.dim(0);
    const std::uint64_t row_bytes = element_bytes(wider_.hidden);
    Operands of = operands_;
    of.gate_up.a = of.down.c = b.routed.rows;
    of.gate_up.c = b.routed.gate_up;
    of.down.a = b.routed.gate_up;
    describe_groups(b.routed.permutation.expert_offsets, *gate_up_, of.gate_up, *down_, of.down,
                    stream());
    const void* source = x.data;
    if (pads_hidden()) {
      const std::uint64_t given = element_bytes(problem_.shape.hidden);
      MOE_CUDA_CHECK(
          cudaMemsetAsync(b.wide, 0, static_cast<std::size_t>(tokens) * row_bytes, stream()));
      copy_rows({b.wide, row_bytes}, {x.data, given}, tokens, given, stream());
      source = b.wide;
    }
    steps_.permute(source, tokens, b.routed, stream());
    const std::int64_t rows = tokens * routed_.top_k;
    context.record("permute", static_cast<std::uint64_t>(rows) * row_bytes,
                   [&] { return fmt::format("{} rows of {} bytes by expert", rows, row_bytes); });
  }

  void multiply(Context& context, const char* op, CutlassGemm& gemm, std::int64_t rows) {
    const CutlassTile tile = tile_of(gemm, rows);
    gemm.run(tile, stream());
    context.record(op, element_bytes(rows * gemm.spec().n), [&] {
      return fmt::format("all experts, {} rows n={} k={}, {} tiles", rows, gemm.spec().n,
                         gemm.spec().k, name_of(tile));
    });
  }

  void activate(Context& context, std::int64_t rows, const Buffers& b) {
    const std::int64_t intermediate = wider_.intermediate;
    steps_.activate(b.routed, 0, rows, stream());
    context.record("activation", element_bytes(rows * intermediate),
                   [&] { return fmt::format("{} rows x {} columns", rows, intermediate); });
  }

  void combine(Context& context, const TensorView& y, const Buffers& b) {
    const std::int64_t tokens = y.dim(0);
    steps_.combine(b.routed, tokens, pads_hidden() ? b.wide : y.data, stream());
    if (pads_hidden()) {
      const std::uint64_t given = element_bytes(problem_.shape.hidden);
      copy_rows({y.data, given}, {b.wide, element_bytes(wider_.hidden)}, tokens, given, stream());
    }
    context.record("unpermute", y.bytes(), [&] {
      return fmt::format("{} tokens, weighted sum of {} rows", tokens, routed_.top_k);
    });
  }

  /// Of both products; rows are set in forward.
  struct Operands {
    CutlassGemm::Operands gate_up;
    CutlassGemm::Operands down;
  };

  StoredWidths wider_;
  TileMachine machine_;
  DeviceBuffer gate_up_weights_;
  DeviceBuffer down_weights_;
  DeviceBuffer down_bias_;  // [E,H'] where rows are padded
  Operands operands_;
  RoutedSteps steps_;
  std::optional<CutlassGemm> gate_up_;
  std::optional<CutlassGemm> down_;
};

}  // namespace

std::unique_ptr<Level> make_level07_grouped_gemm() {
  return std::make_unique<GroupedGemmLevel>();
}

}  // namespace moe::cuda
