#include "bench/probe_kernels.h"
#include "bench/probe_lanes_avx512_impl.h"
// The loops below use the Lanes above.
#include "bench/probe_dot_avx512bf16_impl.h"
#include "bench/probe_loops_impl.h"

namespace moe {

constinit const ProbeKernels kProbeAvx512bf16 = {.isa = Isa::kAvx512bf16,
                                                 .multiply_add = probe_multiply_add,
                                                 .multiply_add_flops = kMultiplyAddFlops,
                                                 .dot_bf16 = probe_dot_bf16,
                                                 .dot_bf16_flops = kDotFlops,
                                                 .read = probe_read};

}  // namespace moe
