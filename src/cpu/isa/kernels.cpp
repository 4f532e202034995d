#include "cpu/isa/kernels.h"

namespace moe::cpu {

const Kernels& kernels_for(Isa ceiling) {
  const Isa isa = ceiling < best_isa() ? ceiling : best_isa();
  switch (isa) {
    case Isa::kAmx:
      return kKernelsAmx;
    case Isa::kAvx512bf16:
      return kKernelsAvx512bf16;
    case Isa::kAvx512f:
      return kKernelsAvx512f;
    case Isa::kAvx2:
      return kKernelsAvx2;
    case Isa::kScalar:
      break;
  }
  return kKernelsScalar;
}

}  // namespace moe::cpu
