// moe doctor: what this machine has and what will be used.
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/output.h"
#include "cli/provenance.h"
#include "core/check.h"
#include "core/level.h"
#include "core/text.h"
#include "moe/bench.h"

namespace moe::cli {
namespace {

struct Finding {
  std::string name;
  std::string text;
};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string instruction_sets(const MachineInfo& machine) {
  std::string all;
  for (const std::string& isa : machine.isas) all += (all.empty() ? "" : " ") + isa;
  return fmt::format("{}; used: {} (a lower one with --isa)", all, machine.isa);
}

std::string cuda_toolkit() {
  for (const char* nvcc : {"nvcc", "/usr/local/cuda/bin/nvcc"}) {
    std::string release =
        first_line_of(std::string(nvcc) + " --version 2>/dev/null | grep -i release");
    if (!release.empty()) return release;
  }
  return "none found (no nvcc)";
}

std::string gpus() {
  const std::string names = first_line_of(
      "nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null "
      "| paste -sd ';'");
  return names.empty() ? "none found (nvidia-smi is missing or lists none)" : names;
}

std::string backends() {
  std::string text;
  for (const Backend backend : {Backend::kCpu, Backend::kCuda}) {
    int levels = 0;
    for (const LevelInfo& level : list_levels()) {
      if (level_factory(level, backend) != nullptr) ++levels;
    }
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", name_of(backend),
                        levels > 0 ? fmt::format("{} levels", levels) : "not in this build");
  }
  return text;
}

std::string openmp_waiting() {
  const std::string policy = environment("OMP_WAIT_POLICY");
  if (policy == "passive" || policy == "PASSIVE") {
    return "OMP_WAIT_POLICY=passive: every parallel region starts tens of microseconds late; unset "
           "it to measure";
  }
  return policy.empty() ? "OMP_WAIT_POLICY unset: threads spin briefly between regions"
                        : "OMP_WAIT_POLICY=" + policy;
}

std::string tuning_cache() {
  const std::string folder = environment("MOE_CACHE");
  if (!folder.empty()) return folder + " (from MOE_CACHE)";
  const std::string home = environment("HOME");
  return home.empty() ? "off: neither MOE_CACHE nor HOME is set" : home + "/.cache/moe";
}

int doctor(bool json) {
  const MachineInfo machine = describe_machine();
  std::string libraries;
  bool onednn = false;
  for (const auto& [name, version] : linked_libraries(machine)) {
    libraries += fmt::format("{}{} {}", libraries.empty() ? "" : ", ", name, version);
    onednn = onednn || name == "oneDNN";
  }
  if (!onednn) libraries += "; no oneDNN: the levels that use it are skipped";
  const Commit commit = source_commit();
  const std::vector<Finding> findings = {
      {"cpu", machine.cpu},
      {"cores", fmt::format("{} cores, {} threads usable", machine.cores, machine.threads)},
      {"isa", instruction_sets(machine)},
      {"memory", fmt::format("{}, {} available", format_bytes(machine.memory_bytes),
                             format_bytes(machine.available_bytes))},
      {"huge pages",
       machine.huge_pages.empty()
           ? "unknown"
           : machine.huge_pages +
                 (machine.huge_pages == "never" ? ": large buffers cost more page faults" : "")},
      {"system", fmt::format("{}, {}", machine.os, machine.kernel)},
      {"compiler", machine.compiler},
      {"libraries", libraries},
      {"openmp", openmp_waiting()},
      {"cuda", cuda_toolkit()},
      {"gpus", gpus()},
      {"backends", backends()},
      {"tuning cache", tuning_cache()},
      {"version",
       fmt::format("{}{}{}", version(), commit.hash.empty() ? "" : ", commit " + commit.hash,
                   commit.modified ? " (modified)" : "")}};
  std::string text;
  nlohmann::ordered_json object = nlohmann::ordered_json::object();
  for (const Finding& finding : findings) {
    text += fmt::format("{:<13} {}\n", finding.name, finding.text);
    object[finding.name] = finding.text;
  }
  write_stdout(json ? object.dump(2) + "\n" : text);
  return 0;
}

}  // namespace

Command add_doctor(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("doctor", "What this machine has and what will be used");
  command->add_flag("--json", *json);
  return {command, [json] { return doctor(*json); }};
}

}  // namespace moe::cli
