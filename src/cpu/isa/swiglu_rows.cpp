#include "cpu/isa/swiglu_rows.h"

#include <algorithm>

#include "core/check.h"

namespace moe::cpu {

const SwigluRows& swiglu_rows_for(Isa ceiling) {
  const Isa tier = std::min(ceiling, best_isa());
  MOE_INTERNAL_CHECK(tier >= Isa::kAvx2,
                     "SwiGLU over rows asked for isa '{}', written for avx2 and up", name_of(tier));
  return tier >= Isa::kAvx512f ? kSwigluRowsAvx512f : kSwigluRowsAvx2;
}

}  // namespace moe::cpu
