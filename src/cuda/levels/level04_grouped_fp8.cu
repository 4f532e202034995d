// Variants of level 04 · grouped_fp8_converted, grouped_fp8_stored — the experts' GEMMs in FP8.
// Changes   operands of the GEMMs are e4m3 with one scale per tensor: x and act are rounded in every
//           forward, the weights either in every forward too (converted) or once in create() (stored).
// Why       the tensor cores multiply e4m3 at twice the rate of bf16, and stored weights are half as
//           many bytes. Converting them on the fly reads the bf16 weights first and writes and reads
//           the others on top: 4·3·E·H·I bytes instead of 2·3·E_hit·H·I.
// Costs     accuracy: 4 significant bits, a tolerance of its own (docs/verification.md). Passes over x
//           and act to find their largest magnitude and to round them: 5·T·K·(H+I) bytes.
// Measured  `moe bench run -t moe_myths`; docs/myths.md
//
//   rows[TK,H] ─quantize─▶ e4m3 ─gate_up─▶ gate_up[TK,2I] ─swiglu─▶ act ─quantize─▶ e4m3 ─down─▶ rows[TK,H]
#include "cuda/check.h"
#include "cuda/level_base.h"
#include "cuda/ops/layer_kernels.h"
#include "cuda/ops/quantize_fp8.h"
#include "cuda/ops/routed_buffers.h"

namespace moe::cuda {
namespace {

enum class Fp8Weights : std::uint8_t { kConverted, kStored };

/// On the device, of one tensor: what largest_magnitude() and quantize_e4m3() write.
/// Factors of their own 16 bytes: cuBLASLt takes no other addresses.
struct Scaling {
  alignas(16) float largest;
  alignas(16) float scale;
};

struct Buffers {
  RoutedBuffers routed;
  std::byte* operand = nullptr;  // [T·K',H], later [T·K',I], e4m3
  std::byte* gate_up = nullptr;  // converted: [E',M·I,H] e4m3
  std::byte* down = nullptr;     // converted: [E',H,I] e4m3
};

class GroupedFp8 final : public CudaLevel {
 public:
  explicit GroupedFp8(Fp8Weights weights) : kind_(weights) {}

  [[nodiscard]] Features features() const override { return Features::all(); }
  [[nodiscard]] std::string unsupported(const Problem& problem,
                                        const ExecutionOptions& execution) const override {
    if (std::string reason = CudaLevel::unsupported(problem, execution); !reason.empty()) {
      return reason;
    }
    const DeviceFacts& facts = device_of(execution).facts();
    if (facts.major * 10 + facts.minor < 89) {
      return fmt::format("compute capability {}.{} has no FP8 tensor cores", facts.major,
                         facts.minor);
    }
    const Shape& shape = problem.shape;
    if (shape.hidden % 16 != 0 || shape.intermediate % 16 != 0) {
      return fmt::format("cuBLASLt's FP8 GEMMs need H={} and I={} to be multiples of 16",
                         shape.hidden, shape.intermediate);
    }
    if (problem.dtype != DType::kBF16) return "FP8 GEMMs here write bf16, not fp32";
    return {};
  }

  [[nodiscard]] MemoryNeeds memory(const Problem& problem,
                                   const ExecutionOptions& execution) const override {
    ArenaPlan plan;
    static_cast<void>(carve(plan, problem, device_of(execution).facts()));
    const StoredWidths widths = StoredWidths::of(problem);
    // Of down there is a copy where the shared expert's parts join it in one tensor.
    const std::uint64_t packed =
        gate_up_bytes(problem) +
        (problem.shared_intermediate > 0 ? down_bytes(problem, widths) : 0);
    const bool stored = kind_ == Fp8Weights::kStored;
    return {.workspace = plan.bytes(),
            .transient = stored ? packed : 0,
            .prepared = kBasePrepared + kTensors * sizeof(Scaling) +
                        (stored ? gate_up_elements(problem) + down_elements(problem) : packed)};
  }

  [[nodiscard]] Operands operands() const override { return Operands::kFp8; }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    const Shape& shape = routed_;
    kernels_ = make_precompiled_kernels(problem, device_->facts(), weights);
    scaling_ = DeviceBuffer(kTensors * sizeof(Scaling));
    packed_ = pack_gate_up(problem, weights, stream());
    down_ = weights.down.data;
    if (problem.shared_intermediate > 0) {
      packed_down_ = pack_down(problem, weights, StoredWidths::of(problem), stream());
      down_ = packed_down_.data();
    }
    // The weights do not change, so neither do their largest magnitudes.
    const std::int64_t rows = shape.experts * gate_up_columns();
    largest_magnitude(problem.dtype, packed_.data(), rows, shape.hidden, shape.hidden,
                      &of(kGateUp)->largest, stream());
    largest_magnitude(problem.dtype, down_, shape.experts * shape.hidden, shape.intermediate,
                      shape.intermediate, &of(kDown)->largest, stream());
    if (kind_ == Fp8Weights::kStored) {
      gate_up8_ = DeviceBuffer(gate_up_elements(problem));
      down8_ = DeviceBuffer(down_elements(problem));
      quantize_weights(gate_up8_.as<std::byte>(), down8_.as<std::byte>());
      MOE_CUDA_CHECK(cudaStreamSynchronize(stream()));
      packed_ = DeviceBuffer();
      packed_down_ = DeviceBuffer();
    }
    gate_up_gemm_.emplace(*library_, MatmulSpec{.n = gate_up_columns(),
                                                .k = shape.hidden,
                                                .e4m3 = true,
                                                .out = problem.dtype,
                                                .scale_a = &of(kX)->scale,
                                                .scale_w = &of(kGateUp)->scale});
    down_gemm_.emplace(*library_, MatmulSpec{.n = shape.hidden,
                                             .k = shape.intermediate,
                                             .e4m3 = true,
                                             .out = problem.dtype,
                                             .scale_a = &of(kAct)->scale,
                                             .scale_w = &of(kDown)->scale});
    const std::int64_t most_rows = most_rows_of_expert(problem, shape.tokens);
    gate_up_gemm_->choose_up_to(most_rows);
    down_gemm_->choose_up_to(most_rows);
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const Shape& shape = routed_;
    const Buffers b = carve(context.arena, problem_, device_->facts());
    const RoutingInputs in =
        router_products(context.routes, x, 0, x.dim(0), routing_of(b.routed), stream());
    kernels_->route(in, b.routed, x.dim(0), HostReads::kOffsets, stream());
    context.record("route", static_cast<std::uint64_t>(x.dim(0) * shape.top_k) * 8,
                   [&] { return fmt::format("top {} of {}", shape.top_k, shape.experts); });
    kernels_->permute(x, b.routed, stream());
    const std::int32_t* const offsets = kernels_->wait_for_offsets(stream());
    const std::int64_t routed = offsets[shape.experts];  // less than T·K' where slots are not used
    context.record("permute", element_bytes(routed * shape.hidden),
                   [&] { return fmt::format("{} rows by expert", routed); });
    const std::byte* gate_up8 = gate_up8_.as<std::byte>();
    const std::byte* down8 = down8_.as<std::byte>();
    if (kind_ == Fp8Weights::kConverted) {
      quantize_weights(b.gate_up, b.down);
      context.record("quantize_weights", gate_up_elements(problem_) + down_elements(problem_),
                     [&] { return fmt::format("all of {} experts", shape.experts); });
      gate_up8 = b.gate_up;
      down8 = b.down;
    }
    if (routed > 0) {
      quantize(context, "quantize_x", kX, b.routed.rows, routed, shape.hidden, shape.hidden,
               b.operand);
      multiply(context, "gemm_gate_up", *gate_up_gemm_, offsets, b.operand, gate_up8,
               b.routed.gate_up);
      kernels_->activate(b.routed, 0, routed, stream());
      context.record("activation", element_bytes(routed * shape.intermediate),
                     [&] { return fmt::format("{} rows", routed); });
      quantize(context, "quantize_act", kAct, b.routed.gate_up, routed, shape.intermediate,
               gate_up_columns(), b.operand);
      multiply(context, "gemm_down", *down_gemm_, offsets, b.operand, down8, b.routed.rows);
    }
    kernels_->combine(b.routed, y, stream());
    context.record("unpermute", y.bytes(), [&] { return fmt::format("{} tokens", y.dim(0)); });
  }

 private:
  enum Tensor : std::uint8_t { kGateUp, kDown, kX, kAct, kTensors };

  [[nodiscard]] Scaling* of(Tensor tensor) const { return scaling_.as<Scaling>() + tensor; }

  static std::uint64_t gate_up_elements(const Problem& problem) {
    return gate_up_bytes(problem) / size_of(problem.dtype);
  }
  static std::uint64_t down_elements(const Problem& problem) {
    return down_bytes(problem, StoredWidths::of(problem)) / size_of(problem.dtype);
  }
  [[nodiscard]] std::int64_t gate_up_columns() const {
    return matrices_before_activation(problem_) * problem_.shape.intermediate;
  }

  template <class Memory>
  Buffers carve(Memory& memory, const Problem& problem, const DeviceFacts& facts) const {
    const Shape shape = with_shared_slots(problem);
    Buffers b;
    b.routed = carve_routed_buffers(memory, problem, facts, StoredWidths::of(problem),
                                    layer_kernels_scratch(problem, facts));
    b.operand = memory.template take<std::byte>(shape.routed_rows() *
                                                std::max(shape.hidden, shape.intermediate));
    if (kind_ == Fp8Weights::kConverted) {
      b.gate_up =
          memory.template take<std::byte>(static_cast<std::int64_t>(gate_up_elements(problem)));
      b.down = memory.template take<std::byte>(static_cast<std::int64_t>(down_elements(problem)));
    }
    return b;
  }

  void quantize_weights(std::byte* gate_up8, std::byte* down8) {
    const Shape& shape = routed_;
    quantize_e4m3(problem_.dtype, packed_.data(), shape.experts * gate_up_columns(), shape.hidden,
                  shape.hidden, &of(kGateUp)->largest, gate_up8, &of(kGateUp)->scale, stream());
    quantize_e4m3(problem_.dtype, down_, shape.experts * shape.hidden, shape.intermediate,
                  shape.intermediate, &of(kDown)->largest, down8, &of(kDown)->scale, stream());
  }

  void quantize(Context& context, const char* op, Tensor tensor, const void* data,
                std::int64_t rows, std::int64_t columns, std::int64_t stride, std::byte* out) {
    largest_magnitude(problem_.dtype, data, rows, columns, stride, &of(tensor)->largest, stream());
    quantize_e4m3(problem_.dtype, data, rows, columns, stride, &of(tensor)->largest, out,
                  &of(tensor)->scale, stream());
    context.record(op, static_cast<std::uint64_t>(rows * columns),
                   [&] { return fmt::format("{} rows x {} columns", rows, columns); });
  }

  /// c[segment] = a[segment] · w[expert]^T; a and w e4m3.
  void multiply(Context& context, const char* op, Matmul& gemm, const std::int32_t* offsets,
                const std::byte* a, const std::byte* w, std::byte* c) {
    for (std::int64_t expert = 0; expert < routed_.experts; ++expert) {
      const std::int64_t first = offsets[expert];
      const std::int64_t rows = offsets[expert + 1] - first;
      if (rows == 0) continue;
      gemm.run(a + first * gemm.k(), w + expert * gemm.n() * gemm.k(),
               c + element_bytes(first * gemm.n()), rows, stream());
      context.record(op, element_bytes(rows * gemm.n()), [&] {
        return fmt::format("e4m3, expert {} m={} n={} k={}", expert, rows, gemm.n(), gemm.k());
      });
    }
  }

  Fp8Weights kind_;
  DeviceBuffer packed_;            // [E',M·I,H]; converted only
  DeviceBuffer packed_down_;       // [E',H,I] with a shared expert; converted only
  const void* down_ = nullptr;     // [E',H,I]
  DeviceBuffer gate_up8_, down8_;  // stored only
  DeviceBuffer scaling_;           // [kTensors]
  std::unique_ptr<LayerKernels> kernels_;
  std::optional<Matmul> gate_up_gemm_;
  std::optional<Matmul> down_gemm_;
};

}  // namespace

std::unique_ptr<Level> make_variant_grouped_fp8_converted() {
  return std::make_unique<GroupedFp8>(Fp8Weights::kConverted);
}
std::unique_ptr<Level> make_variant_grouped_fp8_stored() {
  return std::make_unique<GroupedFp8>(Fp8Weights::kStored);
}

}  // namespace moe::cuda
