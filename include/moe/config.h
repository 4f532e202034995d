// What an MoE layer computes: its sizes, its numeric format, its router and its activation.
//
// Letters used in comments and on the command line: T tokens, H hidden, I intermediate, E experts,
// K top-k. All sizes are element counts, 64-bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
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

/// What becomes of a token's E logits before experts are chosen. docs/routing.md has the formulas.
enum class Scoring : std::uint8_t {
  kSoftmax,       ///< exp(l) over the sum of all E (Shazeer et al. 2017, arXiv:1701.06538)
  kSigmoid,       ///< 1 / (1 + exp(-l)) (DeepSeek-V3, arXiv:2412.19437; Llama 4)
  kSqrtSoftplus,  ///< sqrt(log(1 + exp(l))) (DeepSeek-V4)
  /// One expert after the other, each weighed by a softmax over those not chosen before and close to
  /// the best (Liu et al. 2023, arXiv:2310.00811; Phi-3.5-MoE).
  kSparseMixer,
  kGiven,  ///< no router: the caller of forward brings experts and weights
};

/// How a token's K experts and their weights follow from logits x·W_router, which are fp32. Experts
/// are the K largest scores (plus the selection bias) in descending order, lowest index first among
/// equals. A logit that is NaN counts as -infinity. The default is that of Qwen3-MoE with
/// norm_topk_prob = true; softmax after top-k (Mixtral, gpt-oss) has the same weights.
struct Router {
  Scoring scoring = Scoring::kSoftmax;
  /// Weights are divided by their sum over the K chosen experts.
  bool renormalise = true;
  float scale = 1;          ///< multiplies the weights at the end
  std::int64_t groups = 1;  ///< experts in this many groups of neighbours...
  std::int64_t top_groups =
      1;              ///< ...of which the best are kept before experts are chosen. A group's
                      ///< score is its largest (kSoftmax) or the sum of its two largest
  bool bias = false;  ///< Weights::router_bias is added to the logits
  bool selection_bias =
      false;  ///< Weights::selection_bias is added to scores for choosing, not for
              ///< weighing (arXiv:2408.15664)
  /// The weight multiplies the expert's input instead of its output (Llama 4).
  bool weight_on_input = false;
  bool operator==(const Router&) const = default;
};

/// What happens between the up and the down projection, elementwise.
struct Activation {
  enum class Kind : std::uint8_t {
    kSwiGLU,  ///< g·sigmoid(alpha·g)·(u + up_offset) (Shazeer 2020, arXiv:2002.05202)
    kGeGLU,  ///< gelu(g)·u, gelu by the tanh formula (Hendrycks and Gimpel 2016, arXiv:1606.08415)
    kReLU2,  ///< max(u, 0)², without a gate matrix (So et al. 2021, arXiv:2109.08668)
  };
  Kind kind = Kind::kSwiGLU;
  float alpha = 1;  ///< kSwiGLU only, like the two below
  /// g is at most this, u lies between its negative and itself; infinity: neither is clamped.
  float limit = std::numeric_limits<float>::infinity();
  float up_offset = 0;  ///< 1 for gpt-oss
  /// Whether there is a gate matrix.
  [[nodiscard]] bool gated() const { return kind != Kind::kReLU2; }
  bool operator==(const Activation&) const = default;
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
  Router router = {};
  Activation activation = {};
  bool expert_bias = false;  ///< gate, up and down projections add a bias per expert
  /// Intermediate size of the shared expert that every token takes, that of several together; 0: none.
  std::int64_t shared_intermediate = 0;
  bool shared_switch = false;  ///< its output is multiplied by sigmoid(x·Weights::shared_switch)
  bool operator==(const Problem&) const = default;
};

/// Throws Error(kInvalidArgument) with the offending values unless all sizes are at least 1, K <=
/// E, and T·K·(H+2·I), E·3·H·I, and T·E elements of 8 bytes all fit in a signed 64-bit byte count.
void validate(const Shape& shape);
/// The same for a whole problem: also groups that do not divide the experts or hold fewer than K, and
/// settings that its scoring or its activation does not have.
void validate(const Problem& problem);

[[nodiscard]] std::size_t size_of(DType dtype);             ///< bytes per element
[[nodiscard]] std::string_view name_of(DType dtype);        ///< "fp32" | "bf16"
[[nodiscard]] std::string_view name_of(Operands operands);  ///< "as stored" | "fp8"
[[nodiscard]] std::string_view name_of(Backend backend);    ///< "cpu" | "cuda"
[[nodiscard]] DType parse_dtype(std::string_view name);  ///< throws kInvalidArgument, nearest name
[[nodiscard]] Backend parse_backend(std::string_view name);
/// "T=512 H=1024 I=2048 E=8 K=2"
[[nodiscard]] std::string to_string(const Shape& shape);

/// "softmax", "sigmoid,selection-bias,groups=8/4,scale=2.5": the scoring and what differs from Router{}
/// of: raw (not renormalised), bias, selection-bias, groups=GROUPS/KEPT, scale=S, on-input.
[[nodiscard]] std::string to_string(const Router& router);
/// The reverse. sparsemixer and given imply raw. Throws kInvalidArgument.
[[nodiscard]] Router parse_router(std::string_view text);
/// "swiglu", "swiglu,alpha=1.702,limit=7,up=1", "geglu", "relu2".
[[nodiscard]] std::string to_string(const Activation& activation);
[[nodiscard]] Activation parse_activation(std::string_view text);
/// What the problem has beyond shape and dtype, in the words of the command line: "" or
/// "--router sigmoid --activation relu2 --expert-bias --shared 512,switch".
[[nodiscard]] std::string block_options(const Problem& problem);
/// The reverse: sets all of that. Throws kInvalidArgument.
void set_block_options(Problem& problem, std::string_view options);
/// "512" or "512,switch", as of --shared.
void set_shared_expert(Problem& problem, std::string_view text);

/// Useful floating-point operations of one forward: 2·H·I for each matrix (3, without a gate 2) of each
/// routed row, the same for the shared expert and each token, 2·T·H·E for the router and 2·T·H for the
/// shared expert's switch. Padding, biases and what is elementwise are not counted.
[[nodiscard]] double useful_flops(const Problem& problem);
/// Bytes that any implementation must move at least once: the weights of `active_experts` experts and
/// of the shared one, the router, x in and y out.
[[nodiscard]] double minimum_bytes(const Problem& problem, std::int64_t active_experts);
/// Bytes of all weights: the matrices in the problem's dtype, biases in fp32.
[[nodiscard]] std::uint64_t weight_bytes(const Problem& problem);

}  // namespace moe
