// First products without a gate, and second products with biases.
#include "cuda/ops/grouped_gemm_sm90_kernels.cuh"

namespace moe::cuda {

template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kReLU2>(int, bool);
template GroupedGemmKernel grouped_gemm_kernel_for<GemmEpilogue::kStoreBias>(int, bool);

}  // namespace moe::cuda
