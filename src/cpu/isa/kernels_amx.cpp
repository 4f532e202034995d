#include <iterator>

#include "cpu/isa/gemm_f32_avx512f.h"
#include "cpu/isa/kernels.h"
#include "cpu/isa/vector_avx512_impl.h"
// The templates below use the Vector above.
#include "cpu/isa/combine_impl.h"
#include "cpu/isa/dot_avx512bf16_impl.h"
#include "cpu/isa/dot_impl.h"
#include "cpu/isa/gemm_amx_impl.h"
#include "cpu/isa/router_impl.h"

namespace moe::cpu {
namespace {

/// The tile instructions. Written out: the compiler's macros paste tile numbers into the assembly and
/// take no template parameter.
struct AmxTiles {
  static void configure(const AmxConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config)); }
  static void release() { __asm__ volatile("tilerelease"); }
  template <int kTile>
  static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  static void load(const void* from, std::int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  static void store(void* to, std::int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile)
                     : "memory");
  }
  /// kSums += kA · kB
  template <int kSums, int kA, int kB>
  static void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
  }
};

TileFunction find_amx_tile(TileShape, int, int) {
  return amx_tile<AmxTiles>;
}

constexpr TileShape kShapesBf16[] = {{static_cast<int>(2 * kAmxTileRows), 1}};

}  // namespace

// AMX multiplies bf16 only: fp32 is the same as in the tier AVX-512F.
constinit const Kernels kKernelsAmx = {
    .isa = Isa::kAmx,
    .dot_f32 = dot_f32,
    .dot_bf16 = dot_bf16_native,
    .gemm_f32 = kGemmF32Avx512f,
    .gemm_bf16 = {.row_layout = RowLayout::kRows,
                  .lanes = static_cast<int>(Vector::kLanes),
                  .depth_multiple = static_cast<int>(kAmxDepth),
                  .depth_step = static_cast<int>(kAmxDepth),
                  .shapes = kShapesBf16,
                  .shape_count = static_cast<int>(std::size(kShapesBf16)),
                  .tile = find_amx_tile},
    .combine_f32 = combine_rows<float>,
    .combine_bf16 = combine_rows<BFloat16>,
    .sigmoid = sigmoid_in_place,
    .sqrt_softplus = sqrt_softplus_in_place,
    .sum_of_exponentials = sum_of_exponentials,
};

}  // namespace moe::cpu
