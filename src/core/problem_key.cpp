#include "core/problem_key.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/cache_file.h"

namespace moe {

nlohmann::json key_without_tokens(const Problem& problem) {
  const Shape& shape = problem.shape;
  return {{"hidden", shape.hidden},          {"intermediate", shape.intermediate},
          {"experts", shape.experts},        {"top_k", shape.top_k},
          {"dtype", name_of(problem.dtype)}, {"block", block_options(problem)}};
}

std::string file_stem(const Problem& problem) {
  const Shape& shape = problem.shape;
  return fmt::format("{}-h{}-i{}-e{}-k{}-{:016x}", name_of(problem.dtype), shape.hidden,
                     shape.intermediate, shape.experts, shape.top_k,
                     hash_of(key_without_tokens(problem).dump()));
}

}  // namespace moe
