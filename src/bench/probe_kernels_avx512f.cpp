#include "bench/probe_kernels.h"
#include "bench/probe_lanes_avx512_impl.h"
// The loops below use the Lanes above.
#include "bench/probe_loops_impl.h"

namespace moe {

constinit const ProbeKernels kProbeAvx512f = {.isa = Isa::kAvx512f,
                                              .multiply_add = probe_multiply_add,
                                              .multiply_add_flops = kMultiplyAddFlops,
                                              .read = probe_read};

}  // namespace moe
