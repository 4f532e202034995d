#include "core/problem_key.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/cache_file.h"

namespace moe {

nlohmann::json key_without_tokens(const Problem& problem) {
  // By their number: a member that is new does not compile before it is part of the key.
  const auto& [shape, dtype, router, activation] = problem;
  const auto& [tokens, hidden, intermediate, experts, top_k] = shape;
  static_cast<void>(tokens);
  return {{"hidden", hidden},
          {"intermediate", intermediate},
          {"experts", experts},
          {"top_k", top_k},
          {"dtype", name_of(dtype)},
          {"router", static_cast<int>(router)},
          {"activation", static_cast<int>(activation)}};
}

std::string file_stem(const Problem& problem) {
  const Shape& shape = problem.shape;
  return fmt::format("{}-h{}-i{}-e{}-k{}-{:016x}", name_of(problem.dtype), shape.hidden,
                     shape.intermediate, shape.experts, shape.top_k,
                     hash_of(key_without_tokens(problem).dump()));
}

}  // namespace moe
