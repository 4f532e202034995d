#include "cuda/nvrtc.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nvrtc.h>

#include <array>
#include <atomic>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/cache_file.h"
#include "core/check.h"
#include "cuda/nvrtc_sources.h"

namespace moe::cuda {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "moe-cubin-1";
constexpr std::array kLibraries = {"libnvrtc.so.13", "libnvrtc.so.12",
                                   "/usr/local/cuda/lib64/libnvrtc.so.13",
                                   "/usr/local/cuda/lib64/libnvrtc.so.12"};
/// Architecture-specific targets need 12.0; older libraries have other names anyway.
constexpr int kOldestMajor = 12;

/// What the device sources include besides each other. NVRTC brings no standard library.
constexpr std::string_view kCstdint = R"(#pragma once
namespace std {
using int32_t = int;
using int64_t = long long;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long;
}  // namespace std
)";
constexpr std::array kIncludable = {"cuda/device/block_extras.cuh",   "cuda/device/element.cuh",
                                    "cuda/device/launch_shape.cuh",   "cuda/device/overlap.cuh",
                                    "cuda/device/permute.cuh",        "cuda/device/route.cuh",
                                    "cuda/device/shared_address.cuh", "cuda/device/swiglu.cuh",
                                    "cuda/device/top_k.cuh",          "cuda/device/warp.cuh"};

std::string_view source_of(const std::string& include_name) {
  const std::string_view text = embedded_file("src/" + include_name);
  MOE_INTERNAL_CHECK(!text.empty(), "src/{} is not embedded", include_name);
  return text;
}

/// The functions of the library that are used. Never unloaded: programs may live in it.
struct Library {
  std::string unavailable;
  int major = 0;
  int minor = 0;
  decltype(&nvrtcGetErrorString) error_string = nullptr;
  decltype(&nvrtcCreateProgram) create = nullptr;
  decltype(&nvrtcDestroyProgram) destroy = nullptr;
  decltype(&nvrtcCompileProgram) compile = nullptr;
  decltype(&nvrtcGetProgramLogSize) log_size = nullptr;
  decltype(&nvrtcGetProgramLog) log = nullptr;
  decltype(&nvrtcGetCUBINSize) cubin_size = nullptr;
  decltype(&nvrtcGetCUBIN) cubin = nullptr;
};

Library load() {
  Library library;
  void* handle = nullptr;
  for (const char* name : kLibraries) {
    handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) break;
  }
  if (handle == nullptr) {
    library.unavailable = fmt::format(
        "NVRTC, which compiles the kernels of this level for the layer's shape, is not installed: "
        "none of {} can be loaded",
        fmt::join(kLibraries, ", "));
    return library;
  }
  std::string missing;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr) missing = name;
  };
  decltype(&nvrtcVersion) version = nullptr;
  find(version, "nvrtcVersion");
  find(library.error_string, "nvrtcGetErrorString");
  find(library.create, "nvrtcCreateProgram");
  find(library.destroy, "nvrtcDestroyProgram");
  find(library.compile, "nvrtcCompileProgram");
  find(library.log_size, "nvrtcGetProgramLogSize");
  find(library.log, "nvrtcGetProgramLog");
  find(library.cubin_size, "nvrtcGetCUBINSize");
  find(library.cubin, "nvrtcGetCUBIN");
  if (missing.empty()) version(&library.major, &library.minor);
  if (!missing.empty() || library.major < kOldestMajor) {
    library.unavailable =
        fmt::format("the NVRTC library found is too old: {}",
                    missing.empty() ? fmt::format("version {}.{}", library.major, library.minor)
                                    : "it has no " + missing);
  }
  return library;
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

std::atomic<std::uint64_t> compilations{0};

std::vector<std::string> options_of(const NvrtcProgram& program) {
  std::vector<std::string> options = {"--gpu-architecture=" + program.arch, "--std=c++20",
                                      "--extra-device-vectorization", "--ptxas-options=-v"};
  // Since 12.9 the library keeps programs of its own accord ("Caching" in its user guide). Then a cold
  // start would not be cold, and the compiler's report would be missing.
  const Library& nvrtc = library();
  if (nvrtc.major > 12 || (nvrtc.major == 12 && nvrtc.minor >= 9))
    options.emplace_back("--no-cache");
  for (const std::string& define : program.defines) options.push_back("-D" + define);
  return options;
}

/// Everything that the cubin depends on.
json key_of(const NvrtcProgram& program) {
  std::string sources(kCstdint);
  sources += source_of(program.entry);
  for (const char* name : kIncludable) sources += source_of(name);
  return {{"format", kFormat},
          {"nvrtc", nvrtc_version()},
          {"entry", program.entry},
          {"sources", fmt::format("{:016x}", hash_of(sources))},
          {"options", options_of(program)}};
}

/// A line of JSON, then the cubin.
struct Stored {
  std::optional<std::string> cubin;
  std::string refused;  // why a file that is there is not used
};

Stored load_cubin(const std::string& path, const json& key) {
  const std::optional<std::string> content = read_whole(path);
  if (!content) return {};
  const std::size_t end = content->find('\n');
  json head = json::parse(content->substr(0, end), nullptr, false);
  if (end == std::string::npos || !head.is_object()) return {std::nullopt, "it is damaged"};
  std::string cubin = content->substr(end + 1);
  const json check = std::exchange(head["check"], json());
  head.erase("check");
  if (head != key) return {std::nullopt, "it was made for something else"};
  if (check != fmt::format("{:016x}", hash_of(cubin))) return {std::nullopt, "it is damaged"};
  return {std::move(cubin), {}};
}

std::string save_cubin(const std::string& path, json key, const std::string& cubin) {
  key["check"] = fmt::format("{:016x}", hash_of(cubin));
  return write_atomically(path, key.dump() + "\n" + cubin);
}

/// A program of the library, with its destructor.
class Program {
 public:
  Program(const Library& nvrtc, const NvrtcProgram& program) : nvrtc_(nvrtc) {
    // string_views of whole files end with a zero behind them: they are string literals.
    std::vector<const char*> texts = {kCstdint.data()};
    std::vector<const char*> names = {"cstdint"};
    for (const char* name : kIncludable) {
      texts.push_back(source_of(name).data());
      names.push_back(name);
    }
    check(nvrtc.create(&program_, source_of(program.entry).data(), program.entry.c_str(),
                       static_cast<int>(names.size()), texts.data(), names.data()),
          "nvrtcCreateProgram");
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() { nvrtc_.destroy(&program_); }

  void compile(const NvrtcProgram& program) {
    const std::vector<std::string> options = options_of(program);
    std::vector<const char*> pointers;
    pointers.reserve(options.size());
    for (const std::string& option : options) pointers.push_back(option.c_str());
    const nvrtcResult result =
        nvrtc_.compile(program_, static_cast<int>(pointers.size()), pointers.data());
    if (result != NVRTC_SUCCESS) {
      fail(ErrorCode::kInternal, "NVRTC refuses {} ({}): {}", program.entry,
           nvrtc_.error_string(result), log());
    }
  }
  [[nodiscard]] std::string log() const {
    std::size_t size = 0;
    check(nvrtc_.log_size(program_, &size), "nvrtcGetProgramLogSize");
    std::string text(size, '\0');
    check(nvrtc_.log(program_, text.data()), "nvrtcGetProgramLog");
    while (!text.empty() && text.back() == '\0') text.pop_back();
    return text;
  }
  [[nodiscard]] std::string cubin() const {
    std::size_t size = 0;
    check(nvrtc_.cubin_size(program_, &size), "nvrtcGetCUBINSize");
    std::string bytes(size, '\0');
    check(nvrtc_.cubin(program_, bytes.data()), "nvrtcGetCUBIN");
    return bytes;
  }

 private:
  void check(nvrtcResult result, const char* call) const {
    MOE_INTERNAL_CHECK(result == NVRTC_SUCCESS, "{}: {}", call, nvrtc_.error_string(result));
  }
  const Library& nvrtc_;
  nvrtcProgram program_ = nullptr;
};

}  // namespace

std::string nvrtc_arch(int major, int minor) {
  return fmt::format("sm_{}{}{}", major, minor, major >= 9 ? "a" : "");
}

const std::string& nvrtc_unavailable() {
  return library().unavailable;
}

std::string nvrtc_version() {
  return fmt::format("{}.{}", library().major, library().minor);
}

std::uint64_t nvrtc_compilations() {
  return compilations;
}

CompiledProgram nvrtc_compile(const NvrtcProgram& program) {
  const Library& nvrtc = library();
  if (!nvrtc.unavailable.empty()) fail(ErrorCode::kUnsupported, "{}", nvrtc.unavailable);
  const auto start = std::chrono::steady_clock::now();
  ++compilations;
  Program compiled(nvrtc, program);
  compiled.compile(program);
  const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
  return {compiled.cubin(), compiled.log(), fmt::format("compiled in {:.0f} ms", spent.count())};
}

CompiledProgram nvrtc_compile_cached(const NvrtcProgram& program, const std::string& folder) {
  if (!library().unavailable.empty() || folder.empty() || folder == "off") {
    return nvrtc_compile(program);
  }
  const json key = key_of(program);
  const std::string path =
      fmt::format("{}/kernels-{}-{:016x}.cubin", folder, program.arch, hash_of(key.dump()));
  const Stored stored = load_cubin(path, key);
  if (stored.cubin) return {*stored.cubin, {}, "read from " + path};
  CompiledProgram compiled = nvrtc_compile(program);
  if (!stored.refused.empty()) {
    compiled.from += fmt::format("; {} was not used: {}", path, stored.refused);
  }
  if (const std::string problem = save_cubin(path, key, compiled.cubin); !problem.empty()) {
    compiled.from += "; not kept: " + problem;
  }
  return compiled;
}

}  // namespace moe::cuda
