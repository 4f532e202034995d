#include "cpu/isa/swiglu_rows_impl.h"

constexpr SwigluRows kSwigluRowsAvx2 = {swiglu_rows<float>, swiglu_rows<BFloat16>};

}  // namespace moe::cpu
