#include "core/isa.h"

#include <array>
#include <string>

#include "core/check.h"
#include "core/text.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moe {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"scalar", "avx2", "avx512f", "avx512bf16",
                                                    "amx"};

#if defined(__x86_64__)
struct CpuidLeaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf cpuid(unsigned leaf, unsigned subleaf) {
  CpuidLeaf out;
  __get_cpuid_count(leaf, subleaf, &out.eax, &out.ebx, &out.ecx, &out.edx);
  return out;
}

constexpr bool bit(unsigned value, int position) {
  return ((value >> position) & 1U) != 0;
}

/// Register state that the operating system saves: XCR0 (Intel SDM vol. 1, 13.3).
std::uint64_t enabled_state() {
  unsigned low = 0;
  unsigned high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

/// Linux hands out the AMX tile registers per process, on request (Documentation/arch/x86/xstate).
bool request_amx_permission() {
#if defined(__linux__)
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kXfeatureXtileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
  const CpuidLeaf leaf1 = cpuid(1, 0);
  if (!bit(leaf1.ecx, 27)) return Isa::kScalar;  // OSXSAVE: without it xgetbv faults
  const std::uint64_t state = enabled_state();
  const CpuidLeaf leaf7 = cpuid(7, 0);
  constexpr std::uint64_t kAvxState = 0x6;      // XMM, YMM
  constexpr std::uint64_t kAvx512State = 0xe6;  // + opmask, ZMM
  constexpr std::uint64_t kAmxState = 0x60000;  // TILECFG, TILEDATA
  const bool avx2 = (state & kAvxState) == kAvxState && bit(leaf7.ebx, 5) && bit(leaf1.ecx, 12) &&
                    bit(leaf1.ecx, 29);  // AVX2, FMA, F16C
  if (!avx2) return Isa::kScalar;
  const bool avx512 = (state & kAvx512State) == kAvx512State && bit(leaf7.ebx, 16) &&
                      bit(leaf7.ebx, 17) && bit(leaf7.ebx, 30) && bit(leaf7.ebx, 31);  // F DQ BW VL
  if (!avx512) return Isa::kAvx2;
  const bool bf16 = leaf7.eax >= 1 && bit(cpuid(7, 1).eax, 5);  // eax: highest subleaf
  if (!bf16) return Isa::kAvx512f;
  const bool amx = (state & kAmxState) == kAmxState && bit(leaf7.edx, 24) && bit(leaf7.edx, 22) &&
                   request_amx_permission();  // AMX_TILE, AMX_BF16
  return amx ? Isa::kAmx : Isa::kAvx512bf16;
}
#else
Isa detect() {
  return Isa::kScalar;
}
#endif

}  // namespace

std::string_view name_of(Isa isa) {
  return kNames[static_cast<std::size_t>(isa)];
}

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

Isa parse_isa(std::string_view name) {
  if (name == "auto") return best_isa();
  for (std::size_t tier = 0; tier < kNames.size(); ++tier) {
    if (kNames[tier] != name) continue;
    const Isa isa = static_cast<Isa>(tier);
    if (isa > best_isa()) {
      fail(ErrorCode::kUnsupported, "isa '{}' is not available here: this machine has up to '{}'",
           name, name_of(best_isa()));
    }
    return isa;
  }
  std::vector<std::string> names(kNames.begin(), kNames.end());
  names.emplace_back("auto");
  fail(ErrorCode::kInvalidArgument, "unknown isa '{}'; did you mean '{}'?", name,
       nearest_match(name, names));
}

std::vector<Isa> available_isas() {
  std::vector<Isa> tiers;
  for (int tier = 0; tier <= static_cast<int>(best_isa()); ++tier)
    tiers.push_back(static_cast<Isa>(tier));
  return tiers;
}

}  // namespace moe
