// Level 08 · persistent — both products of all experts in two persistent kernels of our own (sm_90a).
// Builds on 07 (one launch for all experts, row counts read on the device).
// Changes   weights are packed once into the image that the tensor cores read from shared memory; the
//           kernel puts weights on the 64-row side of wgmma and tokens on the other, whose width is
//           chosen tile by tile in steps of 16; SwiGLU happens in registers, in the first product's
//           epilogue; blocks stay resident and draw tiles from a counter on the device.
// Why       bytes: no gate|up tensor, 2·T·K·2I·b less than a pass of its own moves (04: 3·T·K·I·b more
//           for SwiGLU, 2·T·K·2I·b for the tensor). FLOPs computed: rows of an expert are rounded up to
//           16 instead of 128: with m rows an expert, (m + 120)/(m + 8) less of them, a third less at
//           m = 128. Launches: 7 a forward whatever E is, no host in the middle.
// Costs     a second copy of the weights; the permuted rows still make a round trip, T·K·H·b bytes each
//           way (but not at 192 to 288 rows an expert); tiles of less than 128 rows leave a part of the
//           tensor cores' rate.
// Measured  docs/levels/level08_persistent.md
//
//   x[T,H] ─permute─▶ rows[TK,H] ─gate|up, swiglu─▶ act[TK,I] ─down─▶ rows[TK,H] ─combine─▶ y[T,H]
//                     └ e0 ┘└── e1 ──┘└ e2 ┘  cut into row tiles ≤ 192 or 320; resident blocks draw
//                     └t0┘  └t1┘└t2┘  └t3┘    (row tile x two blocks of 128 features)
#include "cuda/check.h"
#include "cuda/level_base.h"
#include "cuda/ops/grouped_gemm_sm90.h"
#include "cuda/ops/pack_blocked.h"
#include "cuda/ops/permute.h"
#include "cuda/ops/tile_order.h"

namespace moe::cuda {
namespace {

/// Sizes of a problem in whole blocks. Where H or I is no multiple of 64, the rest is zeros.
struct PaddedShape {
  std::int64_t hidden;
  std::int64_t intermediate;

  explicit PaddedShape(const Shape& shape)
      : hidden(blocks_of(shape.hidden, kBlockDepth) * kBlockDepth),
        intermediate(blocks_of(shape.intermediate, kBlockDepth) * kBlockDepth) {}
  [[nodiscard]] BlockedShape gate_up() const { return BlockedShape::gate_up(hidden, intermediate); }
  [[nodiscard]] BlockedShape down() const { return BlockedShape::down(hidden, intermediate); }
};

struct Configs {
  GroupedGemmSpec gate_up_spec;
  GroupedGemmSpec down_spec;
  GroupedGemmConfig gate_up;
  GroupedGemmConfig down;
  bool down_begins_early = false;
};

Configs configure(const Problem& problem, const DeviceFacts& facts) {
  const PaddedShape padded(problem.shape);
  Configs c;
  c.gate_up_spec = {.epilogue = GemmEpilogue::kSwiGLU,
                    .experts = problem.shape.experts,
                    .feature_blocks = padded.gate_up().feature_blocks,
                    .k_blocks = padded.gate_up().k_blocks,
                    .out_columns = padded.intermediate};
  c.down_spec = {.epilogue = GemmEpilogue::kStore,
                 .experts = problem.shape.experts,
                 .feature_blocks = padded.down().feature_blocks,
                 .k_blocks = padded.down().k_blocks,
                 .out_columns = padded.hidden};
  const std::int64_t rows = problem.shape.routed_rows();
  const int tile =
      choose_row_tile(rows, problem.shape.experts,
                      std::min(c.gate_up_spec.feature_blocks, c.down_spec.feature_blocks), facts);
  c.gate_up = choose_grouped_gemm(c.gate_up_spec, rows, tile, facts);
  c.down = choose_grouped_gemm(c.down_spec, rows, tile, facts);
  const std::int64_t experts = problem.shape.experts;
  const RowSplit share(static_cast<int>((rows + experts - 1) / experts), tile);
  // NOTE: clusters that begin at different times share less of what they read: 3 to 8 % lost at Mixtral,
  // where several row tiles read the same weights (docs/levels/level08_persistent.md).
  c.down_begins_early = c.down.weights_read_once &&
                        begins_early(experts * share.tiles * ((c.down_spec.feature_blocks + 1) / 2),
                                     facts.multiprocessors / 2);
  return c;
}

struct Buffers {
  std::byte* rows = nullptr;         // [T·K,H'] x by expert; y by expert once act is made
  std::byte* act = nullptr;          // [T·K,I']
  std::byte* padded = nullptr;       // [T,H'] x, then y; used where H' > H or x is not aligned
  float* logits = nullptr;           // [T,E]
  std::int32_t* topk_idx = nullptr;  // [T,K]
  float* topk_weights = nullptr;     // [T,K]
  Permutation permutation;
  RowTiles row_tiles;
};

/// The large blocks first: their sizes are multiples of 128 bytes, so that all of them begin at one.
template <class Memory>
Buffers carve(Memory& memory, const Problem& problem, const DeviceFacts& facts) {
  const Shape& shape = problem.shape;
  const PaddedShape padded(shape);
  const std::int64_t routed = shape.routed_rows();
  const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
  const GroupedGemmConfig config = configure(problem, facts).gate_up;
  Buffers b;
  b.rows = memory.template take<std::byte>(routed * padded.hidden * element);
  b.act = memory.template take<std::byte>(routed * padded.intermediate * element);
  b.padded = memory.template take<std::byte>(shape.tokens * padded.hidden * element);
  b.logits = memory.template take<float>(shape.tokens * shape.experts);
  b.topk_idx = memory.template take<std::int32_t>(routed);
  b.topk_weights = memory.template take<float>(routed);
  b.permutation.expert_offsets = memory.template take<std::int32_t>(shape.experts + 1);
  b.permutation.dst_row = memory.template take<std::int32_t>(routed);
  b.permutation.block_counts =
      memory.template take<std::int32_t>(permutation_scratch(routed, shape.experts, facts));
  b.row_tiles.tiles =
      memory.template take<RowTile>(most_row_tiles(routed, shape.experts, config.largest_tile));
  b.row_tiles.ready = memory.template take<std::int32_t>(
      most_row_tiles(routed, shape.experts, config.largest_tile));
  b.row_tiles.finished = memory.template take<std::int32_t>(
      most_row_tiles(routed, shape.experts, config.largest_tile));
  b.row_tiles.row_to_token = memory.template take<std::int32_t>(routed);
  b.row_tiles.count = memory.template take<std::int32_t>(1);
  b.row_tiles.tickets = memory.template take<std::int32_t>(RowTiles::kTickets);
  return b;
}

class Persistent final : public CudaLevel {
 public:
  [[nodiscard]] Features features() const override { return {.routers = true}; }
  [[nodiscard]] std::string unsupported(const Problem& problem,
                                        const ExecutionOptions& execution) const override {
    if (problem.dtype != DType::kBF16) {
      return "its kernels are tensor-core products of bf16; fp32 would be rounded";
    }
    const DeviceFacts& facts = device_of(execution).facts();
    if (facts.major != 9) {
      return fmt::format("its kernels are for sm_90a (Hopper); {} has compute capability {}.{}",
                         facts.name, facts.major, facts.minor);
    }
    return CudaLevel::unsupported(problem, execution);
  }

  [[nodiscard]] MemoryNeeds memory(const Problem& problem,
                                   const ExecutionOptions& execution) const override {
    ArenaPlan plan;
    static_cast<void>(carve(plan, problem, device_of(execution).facts()));
    const PaddedShape padded(problem.shape);
    return {.workspace = plan.bytes(),
            .prepared = kBasePrepared + padded.gate_up().bytes(problem.shape.experts) +
                        padded.down().bytes(problem.shape.experts)};
  }

  void prepare(const Problem& problem, const Weights& weights,
               const ExecutionOptions& execution) override {
    keep(problem, weights, execution);
    const Shape& shape = problem.shape;
    const PaddedShape padded(shape);
    packed_gate_up_ = DeviceBuffer(padded.gate_up().bytes(shape.experts));
    packed_down_ = DeviceBuffer(padded.down().bytes(shape.experts));
    pack_gate_up_blocked(weights.gate.data, weights.up.data, shape.experts, shape.hidden,
                         shape.intermediate, packed_gate_up_.data(), stream());
    pack_rows_blocked(weights.down.data, shape.experts, shape.hidden, shape.intermediate,
                      packed_down_.data(), stream());
    const Configs configs = configure(problem, device_->facts());
    gate_up_.emplace(configs.gate_up_spec, configs.gate_up, device_->facts());
    down_.emplace(configs.down_spec, configs.down, device_->facts());
    down_begins_early_ = configs.down_begins_early;
    device_->synchronise();  // packing is part of prepare's time
  }

  void forward(Context& context, const TensorView& x, const TensorView& y) override {
    const Buffers b = carve(context.arena, problem_, device_->facts());
    route(context, x, 0, x.dim(0), {b.logits, b.topk_idx, b.topk_weights, b.permutation});
    plan_rows(context, x.dim(0), b);
    gate_up(context, align_rows(context, x, b), x.dim(0), b);
    down(context, x.dim(0), b);
    combine(context, y, b);
  }

  [[nodiscard]] std::string uncapturable() const override { return {}; }
  [[nodiscard]] std::string plan() const override {
    const Shape& shape = problem_.shape;
    const PaddedShape padded(shape);
    const auto stored = static_cast<double>(padded.gate_up().bytes(shape.experts) +
                                            padded.down().bytes(shape.experts));
    const auto given =
        static_cast<double>(element_bytes(shape.experts * 3 * shape.hidden * shape.intermediate));
    return fmt::format("gate|up: {}, {}; down: {}{}; packed weights {:.1f} % larger than given",
                       to_string(gate_up_->config()),
                       gate_up_->config().cooperative() ? "rows loaded in the tokens' order"
                       : gate_up_->config().gathers()   ? "rows gathered beside the products"
                                                        : "rows permuted before",
                       to_string(down_->config()),
                       down_begins_early_ ? ", begun on finished row tiles" : "",
                       (stored / given - 1) * 100);
  }

 private:
  [[nodiscard]] bool pads_hidden() const {
    return PaddedShape(problem_.shape).hidden != problem_.shape.hidden;
  }

  /// expert_offsets, dst_row, and the list of row tiles.
  void plan_rows(Context& context, std::int64_t tokens, const Buffers& b) {
    const Shape& shape = problem_.shape;
    const int largest = gate_up_->config().largest_tile;
    build_row_tiles({.expert_offsets = b.permutation.expert_offsets,
                     .experts = shape.experts,
                     .dst_row = b.permutation.dst_row,
                     .routed = tokens * shape.top_k,
                     .top_k = shape.top_k,
                     .largest_tile = largest},
                    b.row_tiles, stream());
    context.record(
        "row_tiles",
        static_cast<std::uint64_t>(most_row_tiles(tokens * shape.top_k, shape.experts, largest)) *
            sizeof(RowTile),
        [&] { return fmt::format("at most {} rows a tile", largest); });
  }

  /// Brings x into the form in which the first product can gather its rows: whole blocks, aligned.
  /// Where x has it already, nothing happens. Returns what to gather from.
  const void* align_rows(Context& context, const TensorView& x, const Buffers& b) {
    const auto given_bytes = element_bytes(problem_.shape.hidden);
    const auto row_bytes = element_bytes(PaddedShape(problem_.shape).hidden);
    const auto count = static_cast<std::size_t>(x.dim(0));
    if (!pads_hidden() && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0) return x.data;
    if (pads_hidden()) {
      MOE_CUDA_CHECK(cudaMemsetAsync(b.padded, 0, row_bytes * count, stream()));
    }
    MOE_CUDA_CHECK(cudaMemcpy2DAsync(b.padded, row_bytes, x.data, given_bytes, given_bytes, count,
                                     cudaMemcpyDeviceToDevice, stream()));
    context.record("align", row_bytes * count,
                   [&] { return fmt::format("{} rows of {} bytes", count, row_bytes); });
    return b.padded;
  }

  void gate_up(Context& context, const void* x, std::int64_t tokens, const Buffers& b) {
    const Shape& shape = problem_.shape;
    const PaddedShape padded(shape);
    const bool gathers = gate_up_->config().gathers();
    const std::int64_t rows = tokens * shape.top_k;
    if (!gathers) {
      permute_rows(x, b.permutation.dst_row, tokens, shape.top_k,
                   static_cast<std::int64_t>(element_bytes(padded.hidden)), b.rows, stream());
      context.record("permute", element_bytes(rows * padded.hidden),
                     [&] { return fmt::format("{} rows", rows); });
    }
    gate_up_->run({.rows = b.rows,
                   .gather_from = gathers ? x : nullptr,
                   .packed_weights = packed_gate_up_.data(),
                   .out = b.act,
                   .capacity = shape.routed_rows(),
                   .row_tiles = b.row_tiles,
                   .ticket = b.row_tiles.tickets,
                   .announces = down_begins_early_},
                  stream());
    const bool writes_rows = gathers && !gate_up_->config().cooperative();
    context.record(
        gathers ? "gather_gate_up_swiglu" : "gate_up_swiglu",
        element_bytes(rows * (padded.intermediate + (writes_rows ? padded.hidden : 0))), [&] {
          return fmt::format("{} rows n={} k={}", rows, 2 * padded.intermediate, padded.hidden);
        });
  }

  void down(Context& context, std::int64_t tokens, const Buffers& b) {
    const Shape& shape = problem_.shape;
    const PaddedShape padded(shape);
    down_->run({.rows = b.act,
                .packed_weights = packed_down_.data(),
                .out = b.rows,
                .capacity = shape.routed_rows(),
                .row_tiles = b.row_tiles,
                .ticket = b.row_tiles.tickets + 1,
                .awaits = down_begins_early_ ? gate_up_->announcements() : 0},
               stream());
    context.record("gemm_down", element_bytes(tokens * shape.top_k * padded.hidden), [&] {
      return fmt::format("{} rows n={} k={}", tokens * shape.top_k, padded.hidden,
                         padded.intermediate);
    });
  }

  void combine(Context& context, const TensorView& y, const Buffers& b) {
    const Shape& shape = problem_.shape;
    const std::int64_t tokens = y.dim(0);
    const std::int64_t row = PaddedShape(shape).hidden;
    unpermute_rows(problem_.dtype, b.rows, b.permutation.dst_row, b.topk_weights, tokens,
                   shape.top_k, row, pads_hidden() ? b.padded : y.data, stream());
    if (pads_hidden()) {
      const auto given_bytes = element_bytes(shape.hidden);
      MOE_CUDA_CHECK(cudaMemcpy2DAsync(y.data, given_bytes, b.padded, element_bytes(row),
                                       given_bytes, static_cast<std::size_t>(tokens),
                                       cudaMemcpyDeviceToDevice, stream()));
    }
    context.record("unpermute", y.bytes(), [&] {
      return fmt::format("{} tokens, weighted sum of {} rows", tokens, shape.top_k);
    });
  }

  DeviceBuffer packed_gate_up_;
  DeviceBuffer packed_down_;
  std::optional<GroupedGemmSm90> gate_up_;
  std::optional<GroupedGemmSm90> down_;
  bool down_begins_early_ = false;
};

}  // namespace

std::unique_ptr<Level> make_level08_persistent() {
  return std::make_unique<Persistent>();
}

}  // namespace moe::cuda
