#include <immintrin.h>

#include "bench/probe_kernels.h"
#include "bench/probe_lanes_avx512_impl.h"
// The loops below use the Lanes above.
#include "bench/probe_loops_impl.h"

namespace moe {
namespace {

/// Palette 1: eight tiles of 16 rows of 64 bytes (Intel SDM, LDTILECFG).
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "the layout is the processor's");

// One tdpbf16ps multiplies 16x32 by 32x16; four independent sums hide its latency.
constexpr double kTileFlops = 2.0 * 16 * 16 * 32;
constexpr int kTileChains = 4;

float probe_tiles(std::int64_t iterations) {
  const TileConfig config;
  alignas(64) std::uint16_t ones[16][32];
  for (auto& row : ones) {
    for (std::uint16_t& value : row) value = 0x3f80;  // bf16 1.0
  }
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, ones, 64);
  _tile_loadd(5, ones, 64);
  for (std::int64_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  alignas(64) float sums[16][16];
  float sum = 0;
  _tile_stored(0, sums, 64);
  sum += sums[0][0];
  _tile_stored(1, sums, 64);
  sum += sums[0][0];
  _tile_stored(2, sums, 64);
  sum += sums[0][0];
  _tile_stored(3, sums, 64);
  sum += sums[0][0];
  _tile_release();
  return sum;
}

}  // namespace

constinit const ProbeKernels kProbeAmx = {.isa = Isa::kAmx,
                                          .multiply_add = probe_multiply_add,
                                          .multiply_add_flops = kMultiplyAddFlops,
                                          .dot_bf16 = probe_tiles,
                                          .dot_bf16_flops = kTileChains * kTileFlops,
                                          .read = probe_read};

}  // namespace moe
