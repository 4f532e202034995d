#include "cpu/isa/kernels.h"
#include "cpu/isa/vector_avx512_impl.h"
// The templates below use the Vector above.
#include "cpu/isa/dot_avx512bf16_impl.h"
#include "cpu/isa/dot_impl.h"

namespace moe::cpu {

constinit const Kernels kKernelsAvx512bf16 = {
    .isa = Isa::kAvx512bf16,
    .dot_f32 = dot_f32,
    .dot_bf16 = dot_bf16_native,
};

}  // namespace moe::cpu
