#include <iterator>

#include "cpu/isa/kernels.h"
#include "cpu/isa/vector_scalar_impl.h"
// The templates below use the Vector above.
#include "cpu/isa/combine_impl.h"
#include "cpu/isa/dot_impl.h"
#include "cpu/isa/gemm_impl.h"
#include "cpu/isa/router_impl.h"

namespace moe::cpu {
namespace {

// Sums, columns and one value of A must fit the 16 vector registers.
constexpr TileShape kShapesF32[] = {{6, 1}, {2, 2}};
constexpr TileShape kShapesBf16[] = {{5, 1}, {2, 2}};

}  // namespace

constinit const Kernels kKernelsScalar = {
    .isa = Isa::kScalar,
    .dot_f32 = dot_f32,
    .dot_bf16 = dot_bf16_expanded,
    .gemm_f32 = {.row_layout = StepF32::kLayout,
                 .lanes = static_cast<int>(Vector::kLanes),
                 .depth_multiple = StepF32::kDepth,
                 .depth_step = StepF32::kDepth,
                 .shapes = kShapesF32,
                 .shape_count = static_cast<int>(std::size(kShapesF32)),
                 .tile = find_tile<StepF32, 6, 2>},
    .gemm_bf16 = {.row_layout = StepBf16Expanded::kLayout,
                  .lanes = static_cast<int>(Vector::kLanes),
                  .depth_multiple = StepBf16Expanded::kDepth,
                  .depth_step = StepBf16Expanded::kDepth,
                  .shapes = kShapesBf16,
                  .shape_count = static_cast<int>(std::size(kShapesBf16)),
                  .tile = find_tile<StepBf16Expanded, 5, 2>},
    .combine_f32 = combine_rows<float>,
    .combine_bf16 = combine_rows<BFloat16>,
    .sigmoid = sigmoid_in_place,
    .sqrt_softplus = sqrt_softplus_in_place,
    .sum_of_exponentials = sum_of_exponentials,
};

}  // namespace moe::cpu
