// Products without biases: what every model's experts of plain SwiGLU are computed by.
#include "cuda/ops/grouped_gemm_sm90_kernels.cuh"

namespace moe::cuda {

template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kStore>(int, bool);
template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kSwiGLU>(int, bool);

}  // namespace moe::cuda
