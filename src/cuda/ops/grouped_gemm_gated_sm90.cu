// First products of blocks with gate biases or another gated activation than plain SwiGLU.
#include "cuda/ops/grouped_gemm_sm90_kernels.cuh"

namespace moe::cuda {

template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kGated>(int, bool);

}  // namespace moe::cuda
