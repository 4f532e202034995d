#include "cli/provenance.h"

#include <CLI/Version.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/check.h"

namespace moe::cli {
namespace {

std::string git(const std::string& arguments) {
  return first_line_of("git -C '" MOE_SOURCE_DIR "' " + arguments);
}

}  // namespace

std::string first_line_of(const std::string& command) {
  struct Close {
    void operator()(std::FILE* file) const { pclose(file); }
  };
  const std::unique_ptr<std::FILE, Close> pipe(popen((command + " 2>/dev/null").c_str(), "r"));
  std::string line;
  if (pipe == nullptr) return line;
  for (int letter = std::fgetc(pipe.get()); letter != EOF && letter != '\n';
       letter = std::fgetc(pipe.get())) {
    line += static_cast<char>(letter);
  }
  return line;
}

Commit source_commit() {
  std::error_code unreadable;
  Commit commit =
      read_commit(std::filesystem::read_symlink("/proc/self/exe", unreadable).string() + ".commit");
  if (!commit.hash.empty()) return commit;
  commit.hash = git("rev-parse HEAD");
  if (commit.hash.empty()) return commit;
  commit.modified = !git("status --porcelain --untracked-files=no").empty();
  return commit;
}

Commit read_commit(const std::string& path) {
  Commit commit;
  std::string modified;
  std::ifstream file(path);
  file >> commit.hash >> modified;
  commit.modified = modified == "modified";
  return commit;
}

std::string version() {
  return MOE_VERSION;
}

std::vector<std::pair<std::string, std::string>> linked_libraries(const MachineInfo& machine) {
  auto libraries = machine.libraries;
  libraries.emplace_back("CLI11", CLI11_VERSION);
  libraries.emplace_back("nlohmann-json",
                         fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR,
                                     NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH));
  return libraries;
}

}  // namespace moe::cli
