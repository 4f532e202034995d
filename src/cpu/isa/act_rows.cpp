#include "cpu/isa/act_rows.h"

#include <algorithm>

#include "core/check.h"

namespace moe::cpu {

const ActRows& act_rows_for(Isa ceiling) {
  const Isa tier = std::min(ceiling, best_isa());
  MOE_INTERNAL_CHECK(tier >= Isa::kAvx2,
                     "activation over rows asked for isa '{}', written for avx2 and up",
                     name_of(tier));
  return tier >= Isa::kAvx512f ? kActRowsAvx512f : kActRowsAvx2;
}

}  // namespace moe::cpu
