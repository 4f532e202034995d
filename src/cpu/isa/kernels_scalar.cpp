#include "cpu/isa/kernels.h"
#include "cpu/isa/vector_scalar_impl.h"
// The templates below use the Vector above.
#include "cpu/isa/dot_impl.h"

namespace moe::cpu {

constinit const Kernels kKernelsScalar = {
    .isa = Isa::kScalar,
    .dot_f32 = dot_f32,
    .dot_bf16 = dot_bf16_expanded,
};

}  // namespace moe::cpu
