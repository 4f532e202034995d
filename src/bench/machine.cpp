// What this machine is, from /proc, /sys and the compiler.
#include <omp.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <fmt/core.h>

#include <fstream>
#include <set>
#include <string>

#include "core/isa.h"
#include "core/memory.h"
#include "core/threads.h"
#include "moe/bench.h"

#if MOE_HAVE_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#endif

namespace moe {
namespace {

/// The value after "name<separator>" in the first line that starts with it; "" when there is none.
std::string field_of(const char* path, const std::string& name, char separator) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with(name)) continue;
    const std::size_t at = line.find(separator);
    if (at == std::string::npos) continue;
    std::string value = line.substr(at + 1);
    value.erase(0, value.find_first_not_of(" \t\""));
    value.erase(value.find_last_not_of(" \t\"") + 1);
    return value;
  }
  return {};
}

/// Different (socket, core) pairs in /proc/cpuinfo; the logical processors where it lists none.
int physical_cores() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  std::set<std::string> cores;
  std::string socket;
  while (std::getline(file, line)) {
    if (line.starts_with("physical id")) socket = line;
    if (line.starts_with("core id")) cores.insert(socket + line);
  }
  if (!cores.empty()) return static_cast<int>(cores.size());
  return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
}

/// "always [madvise] never" -> "madvise"
std::string huge_page_mode() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  std::getline(file, line);
  const std::size_t begin = line.find('[');
  const std::size_t end = line.find(']');
  if (begin == std::string::npos || end == std::string::npos || end < begin) return {};
  return line.substr(begin + 1, end - begin - 1);
}

}  // namespace

MachineInfo describe_machine() {
  MachineInfo info;
  info.cpu = field_of("/proc/cpuinfo", "model name", ':');
  if (info.cpu.empty()) info.cpu = "unknown";
  info.cores = physical_cores();
  info.threads = usable_threads();
  info.memory_bytes = static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                      static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  info.available_bytes = available_memory();
  info.os = field_of("/etc/os-release", "PRETTY_NAME", '=');
  utsname kernel{};
  if (uname(&kernel) == 0) info.kernel = fmt::format("{} {}", kernel.sysname, kernel.release);
#if defined(__clang__)
  info.compiler =
      fmt::format("clang {}.{}.{}", __clang_major__, __clang_minor__, __clang_patchlevel__);
#else
  info.compiler = fmt::format("g++ {}.{}.{}", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
  info.isa = std::string(name_of(best_isa()));
  for (const Isa isa : available_isas()) info.isas.emplace_back(name_of(isa));
  info.huge_pages = huge_page_mode();
#if MOE_HAVE_ONEDNN
  const dnnl_version_t* version = dnnl_version();
  info.libraries.emplace_back(
      "oneDNN", fmt::format("{}.{}.{}", version->major, version->minor, version->patch));
#endif
  info.libraries.emplace_back("OpenMP", fmt::format("{}", _OPENMP));
  info.libraries.emplace_back("fmt", fmt::format("{}.{}.{}", FMT_VERSION / 10000,
                                                 FMT_VERSION / 100 % 100, FMT_VERSION % 100));
  return info;
}

}  // namespace moe
