#include "report/key_json.h"

#include <cmath>

namespace moe::report {

using Json = nlohmann::ordered_json;

Json key_json(const ResultRow& row) {
  const Shape& shape = row.key.problem.shape;
  return {{"name", row.key.level},
          {"backend", row.key.backend},
          {"dtype", name_of(row.key.problem.dtype)},
          {"tokens", shape.tokens},
          {"hidden", shape.hidden},
          {"intermediate", shape.intermediate},
          {"experts", shape.experts},
          {"top_k", shape.top_k},
          {"block", block_options(row.key.problem)},
          {"launch", row.key.launch},
          {"cache", row.key.cache},
          {"skew", row.key.skew},
          {"seed", row.key.seed},
          {"threads", row.key.threads}};
}

Json finite_json(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

}  // namespace moe::report
