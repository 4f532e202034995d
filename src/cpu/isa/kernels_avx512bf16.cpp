#include <iterator>

#include "cpu/isa/gemm_f32_avx512f.h"
#include "cpu/isa/kernels.h"
#include "cpu/isa/vector_avx512_impl.h"
// The templates below use the Vector above.
#include "cpu/isa/combine_impl.h"
#include "cpu/isa/dot_avx512bf16_impl.h"
#include "cpu/isa/dot_impl.h"
#include "cpu/isa/gemm_avx512bf16_impl.h"
#include "cpu/isa/gemm_impl.h"
#include "cpu/isa/router_impl.h"

namespace moe::cpu {
namespace {

// Sums, columns and one value of A must fit the 32 vector registers.
constexpr TileShape kShapesBf16[] = {{12, 1}, {14, 1}, {6, 2}};

}  // namespace

constinit const Kernels kKernelsAvx512bf16 = {
    .isa = Isa::kAvx512bf16,
    .dot_f32 = dot_f32,
    .dot_bf16 = dot_bf16_native,
    .gemm_f32 = kGemmF32Avx512f,
    .gemm_bf16 = {.row_layout = StepBf16Native::kLayout,
                  .lanes = static_cast<int>(Vector::kLanes),
                  .depth_multiple = StepBf16Native::kDepth,
                  .depth_step = StepBf16Native::kDepth,
                  .shapes = kShapesBf16,
                  .shape_count = static_cast<int>(std::size(kShapesBf16)),
                  .tile = find_tile<StepBf16Native, 14, 6>},
    .combine_f32 = combine_rows<float>,
    .combine_bf16 = combine_rows<BFloat16>,
    .sigmoid = sigmoid_in_place,
    .sqrt_softplus = sqrt_softplus_in_place,
    .sum_of_exponentials = sum_of_exponentials,
};

}  // namespace moe::cpu
