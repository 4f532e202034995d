// x86 instruction-set tiers and which of them this machine and its operating system allow.
#pragma once

#include <string_view>
#include <vector>

namespace moe {

/// Ascending: a machine that has a tier has all before it.
enum class Isa : int {
  kScalar = 0,  ///< baseline x86-64, no intrinsics
  kAvx2,        ///< AVX2 + FMA + F16C
  kAvx512f,     ///< AVX-512 F, BW, DQ, VL
  kAvx512bf16,  ///< + AVX512_BF16 (vdpbf16ps)
  kAmx,         ///< + AMX_TILE, AMX_BF16 with the kernel's permission
};

[[nodiscard]] std::string_view name_of(Isa isa);
/// "auto" = best_isa(). Throws kInvalidArgument for unknown names (nearest match) and kUnsupported
/// for a tier that this machine does not have.
[[nodiscard]] Isa parse_isa(std::string_view name);
/// From CPUID, XCR0 and (AMX) arch_prctl; asked once.
[[nodiscard]] Isa best_isa();
/// All tiers up to best_isa().
[[nodiscard]] std::vector<Isa> available_isas();

}  // namespace moe
