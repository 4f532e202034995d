#include "core/problem_key.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/cache_file.h"

namespace moe {

namespace {

/// What a problem has beyond shape and dtype: in the words of the command line where it has such, else the
/// router's and the activation's numbers.
template <class AnyProblem>
std::string block_of(const AnyProblem& problem) {
  if constexpr (requires { block_options(problem); }) {
    return block_options(problem);
  } else {
    return fmt::format("router {}, activation {}", static_cast<int>(problem.router),
                       static_cast<int>(problem.activation));
  }
}

}  // namespace

nlohmann::json key_without_tokens(const Problem& problem) {
  const Shape& shape = problem.shape;
  return {{"hidden", shape.hidden},          {"intermediate", shape.intermediate},
          {"experts", shape.experts},        {"top_k", shape.top_k},
          {"dtype", name_of(problem.dtype)}, {"block", block_of(problem)}};
}

std::string file_stem(const Problem& problem) {
  const Shape& shape = problem.shape;
  return fmt::format("{}-h{}-i{}-e{}-k{}-{:016x}", name_of(problem.dtype), shape.hidden,
                     shape.intermediate, shape.experts, shape.top_k,
                     hash_of(key_without_tokens(problem).dump()));
}

}  // namespace moe
