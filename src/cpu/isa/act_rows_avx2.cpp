#include "cpu/isa/vector_avx2_impl.h"
// The templates below use the Vector above.
#include "cpu/isa/act_rows_impl.h"

namespace moe::cpu {

constexpr ActRows kActRowsAvx2 = {act_rows<float>, act_rows<BFloat16>};

}  // namespace moe::cpu
