#include "moe/config.h"

#include <array>
#include <limits>
#include <utility>

#include "core/check.h"
#include "core/text.h"

namespace moe {
namespace {

/// Throws unless the product of `factors` (all >= 1) fits in a signed 64-bit number.
void check_product(const Shape& shape, const char* what,
                   std::initializer_list<std::int64_t> factors) {
  std::int64_t product = 1;
  for (const std::int64_t factor : factors) {
    MOE_CHECK(!__builtin_mul_overflow(product, factor, &product),
              "{} overflows 64-bit byte offsets ({})", what, to_string(shape));
  }
}

template <class Value, std::size_t N>
Value parse_name(std::string_view kind, std::string_view name,
                 const std::array<std::pair<std::string_view, Value>, N>& known) {
  std::vector<std::string> names;
  for (const auto& [text, value] : known) {
    if (text == name) return value;
    names.emplace_back(text);
  }
  fail(ErrorCode::kInvalidArgument, "unknown {} '{}'; did you mean '{}'?", kind, name,
       nearest_match(name, names));
}

}  // namespace

void validate(const Shape& shape) {
  const std::array<std::pair<const char*, std::int64_t>, 5> sizes = {
      {{"tokens", shape.tokens},
       {"hidden", shape.hidden},
       {"intermediate", shape.intermediate},
       {"experts", shape.experts},
       {"top_k", shape.top_k}}};
  for (const auto& [name, value] : sizes) {
    MOE_CHECK(value >= 1, "{}={} must be at least 1 ({})", name, value, to_string(shape));
  }
  MOE_CHECK(shape.top_k <= shape.experts, "top_k={} exceeds experts={} ({})", shape.top_k,
            shape.experts, to_string(shape));
  // Indices of experts and of routed rows inside one expert are stored as 32-bit numbers.
  constexpr std::int64_t kMaxIndex = std::numeric_limits<std::int32_t>::max();
  MOE_CHECK(shape.experts <= kMaxIndex, "experts={} exceeds {}", shape.experts, kMaxIndex);
  MOE_CHECK(shape.tokens <= kMaxIndex, "tokens={} exceeds {}", shape.tokens, kMaxIndex);
  constexpr std::int64_t kElement = 8;  // widest element any buffer holds
  check_product(shape, "tokens*top_k*hidden", {kElement, shape.tokens, shape.top_k, shape.hidden});
  check_product(shape, "tokens*top_k*2*intermediate",
                {kElement, shape.tokens, shape.top_k, 2, shape.intermediate});
  check_product(shape, "tokens*experts", {kElement, shape.tokens, shape.experts});
  check_product(shape, "experts*3*hidden*intermediate",
                {kElement, shape.experts, 3, shape.hidden, shape.intermediate});
  check_product(shape, "experts*hidden", {kElement, shape.experts, shape.hidden});
}

std::size_t size_of(DType dtype) {
  return dtype == DType::kF32 ? 4 : 2;
}

std::string_view name_of(DType dtype) {
  return dtype == DType::kF32 ? "fp32" : "bf16";
}

std::string_view name_of(Operands operands) {
  return operands == Operands::kFp8 ? "fp8" : "as stored";
}
std::string_view name_of(Backend backend) {
  return backend == Backend::kCpu ? "cpu" : "cuda";
}

DType parse_dtype(std::string_view name) {
  return parse_name("dtype", name,
                    std::array<std::pair<std::string_view, DType>, 2>{
                        {{"fp32", DType::kF32}, {"bf16", DType::kBF16}}});
}

Backend parse_backend(std::string_view name) {
  return parse_name("backend", name,
                    std::array<std::pair<std::string_view, Backend>, 2>{
                        {{"cpu", Backend::kCpu}, {"cuda", Backend::kCuda}}});
}

std::string to_string(const Shape& shape) {
  return fmt::format("T={} H={} I={} E={} K={}", shape.tokens, shape.hidden, shape.intermediate,
                     shape.experts, shape.top_k);
}

double useful_flops(const Shape& shape) {
  const auto rows = static_cast<double>(shape.routed_rows());
  const auto hidden = static_cast<double>(shape.hidden);
  return 6.0 * rows * hidden * static_cast<double>(shape.intermediate) +
         2.0 * static_cast<double>(shape.tokens) * hidden * static_cast<double>(shape.experts);
}

double minimum_bytes(const Problem& problem, std::int64_t active_experts) {
  const Shape& shape = problem.shape;
  const auto hidden = static_cast<double>(shape.hidden);
  const double expert = 3.0 * hidden * static_cast<double>(shape.intermediate);
  const double elements = static_cast<double>(active_experts) * expert +
                          static_cast<double>(shape.experts) * hidden +
                          2.0 * static_cast<double>(shape.tokens) * hidden;
  return elements * static_cast<double>(size_of(problem.dtype));
}

std::uint64_t weight_bytes(const Problem& problem) {
  const Shape& shape = problem.shape;
  const auto hidden = static_cast<std::uint64_t>(shape.hidden);
  return static_cast<std::uint64_t>(shape.experts) *
         (3 * hidden * static_cast<std::uint64_t>(shape.intermediate) + hidden) *
         size_of(problem.dtype);
}

}  // namespace moe
