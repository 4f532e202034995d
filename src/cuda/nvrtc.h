// NVRTC, the run-time compiler of the CUDA toolkit: loaded when it is first needed, never linked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moe::cuda {

/// What is compiled for one device. Sources are the project's own files, embedded in the library
/// (nvrtc_sources.h); nothing else can be included.
struct NvrtcProgram {
  std::string entry;                 ///< "cuda/nvrtc_kernels.cuh", as an #include names it
  std::string arch;                  ///< "sm_90a"
  std::vector<std::string> defines;  ///< "MOE_HIDDEN=1024"
};

/// "sm_90a" for compute capability 9.0.
[[nodiscard]] std::string nvrtc_arch(int major, int minor);

/// "" when the library is there; else the reason as a sentence. Looks once per process.
[[nodiscard]] const std::string& nvrtc_unavailable();
/// "13.0". Needs nvrtc_unavailable() to be "".
[[nodiscard]] std::string nvrtc_version();

struct CompiledProgram {
  std::string cubin;
  std::string log;   ///< of the compiler, ptxas included; "" when the cubin came from the cache
  std::string from;  ///< "compiled in 312 ms", "read from FILE", and what was wrong with the cache
};
/// Throws Error(kInternal) with the compiler's log when the program is refused.
[[nodiscard]] CompiledProgram nvrtc_compile(const NvrtcProgram& program);
/// From `folder` when the same sources were compiled with the same options by the same compiler
/// before; else compiled and stored there. `folder` "off": always compiled. A damaged file is
/// replaced.
[[nodiscard]] CompiledProgram nvrtc_compile_cached(const NvrtcProgram& program,
                                                   const std::string& folder);

/// Programs that this process compiled so far.
[[nodiscard]] std::uint64_t nvrtc_compilations();

}  // namespace moe::cuda
