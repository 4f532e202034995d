// What an MoE layer computes: its sizes, its numeric format, its router and its activation.
//
// Letters used in comments and on the command line: T tokens, H hidden, I intermediate, E experts,
// K top-k. All sizes are element counts, 64-bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace moe {

/// Element type of x, y and the weights. Accumulation is fp32 for both.
enum class DType : std::uint8_t { kF32, kBF16 };

/// Format in which the experts' GEMMs multiply. A level that rounds its operands further than they
/// are stored says so, and its outputs are held to the tolerance of that format.
enum class Operands : std::uint8_t {
  kAsStored,  ///< Problem::dtype
  kFp8,       ///< e4m3, scaled; sums stay fp32 (Micikevicius et al. 2022, arXiv:2209.05433)
};

enum class Backend : std::uint8_t { kCpu, kCuda };

/// How logits x·W_router become K experts and K weights per token.
enum class Router : std::uint8_t {
  /// Softmax over all E logits, the K largest, renormalised to sum 1. Lowest index wins ties.
  /// (Shazeer et al. 2017, arXiv:1701.06538; Qwen3-MoE with norm_topk_prob = true.)
  kSoftmaxTopKRenormalised,
};

/// What happens between the up and the down projection.
enum class Activation : std::uint8_t {
  kSwiGLU,  ///< silu(gate) * up, silu(v) = v / (1 + exp(-v)) (Shazeer 2020, arXiv:2002.05202)
};

/// The five sizes of an MoE layer.
struct Shape {
  std::int64_t tokens = 0;        ///< T: rows of x; the most rows one forward may bring
  std::int64_t hidden = 0;        ///< H: columns of x and y
  std::int64_t intermediate = 0;  ///< I: columns of gate and up, per expert
  std::int64_t experts = 0;       ///< E
  std::int64_t top_k = 0;         ///< K: experts per token, 1 <= K <= E

  /// T·K: rows after every token was handed to its K experts.
  [[nodiscard]] std::int64_t routed_rows() const { return tokens * top_k; }
  bool operator==(const Shape&) const = default;
};

/// Everything that decides the values of y, apart from weights and x.
struct Problem {
  Shape shape;
  DType dtype = DType::kF32;
  Router router = Router::kSoftmaxTopKRenormalised;
  Activation activation = Activation::kSwiGLU;
  bool operator==(const Problem&) const = default;
};

/// Throws Error(kInvalidArgument) with the offending values unless all sizes are at least 1, K <=
/// E, and T·K·(H+2·I), E·3·H·I, and T·E elements of 8 bytes all fit in a signed 64-bit byte count.
void validate(const Shape& shape);

[[nodiscard]] std::size_t size_of(DType dtype);             ///< bytes per element
[[nodiscard]] std::string_view name_of(DType dtype);        ///< "fp32" | "bf16"
[[nodiscard]] std::string_view name_of(Operands operands);  ///< "as stored" | "fp8"
[[nodiscard]] std::string_view name_of(Backend backend);    ///< "cpu" | "cuda"
[[nodiscard]] DType parse_dtype(std::string_view name);  ///< throws kInvalidArgument, nearest name
[[nodiscard]] Backend parse_backend(std::string_view name);
/// "T=512 H=1024 I=2048 E=8 K=2"
[[nodiscard]] std::string to_string(const Shape& shape);

/// Useful floating-point operations of one forward: 6·T·K·H·I for the experts and 2·T·H·E for the
/// router. Padding, softmax and SiLU are not counted.
[[nodiscard]] double useful_flops(const Shape& shape);
/// Bytes that any implementation must move at least once: the weights of `active_experts` experts,
/// the router, x in and y out.
[[nodiscard]] double minimum_bytes(const Problem& problem, std::int64_t active_experts);
/// Bytes of all weights: E·3·H·I + E·H elements.
[[nodiscard]] std::uint64_t weight_bytes(const Problem& problem);

}  // namespace moe
