#include "cpu/isa/vector_avx2_impl.h"
// The templates below use the Vector above.
#include "cpu/isa/swiglu_rows_impl.h"

namespace moe::cpu {

constexpr SwigluRows kSwigluRowsAvx2 = {swiglu_rows<float>, swiglu_rows<BFloat16>};

}  // namespace moe::cpu
