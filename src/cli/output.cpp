#include "cli/output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/check.h"

namespace moe::cli {
namespace {

std::filesystem::path folder_of(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  return folder.empty() ? std::filesystem::path(".") : folder;
}

[[noreturn]] void fail_writing(const std::string& path, const std::string& reason) {
  fail(ErrorCode::kIo, "cannot write {}: {}", path, reason);
}

}  // namespace

void check_writable(const std::string& path) {
  const std::filesystem::path folder = folder_of(path);
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    fail_writing(path, "no folder " + folder.string());
  }
  if (std::filesystem::is_directory(path, error)) fail_writing(path, "it is a folder");
  if (access(folder.c_str(), W_OK) != 0) {
    fail_writing(path, folder.string() + ": " + std::strerror(errno));
  }
}

void write_file(const std::string& path, const std::string& text) {
  check_writable(path);
  const std::string temporary = path + ".part-" + std::to_string(getpid());
  const auto give_up = [&] {
    const std::string reason = std::strerror(errno);
    std::remove(temporary.c_str());
    fail_writing(path, reason);
  };
  std::FILE* file = std::fopen(temporary.c_str(), "wb");
  if (file == nullptr) give_up();
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const bool closed = std::fclose(file) == 0;
  if (!written || !closed) give_up();
  if (std::rename(temporary.c_str(), path.c_str()) != 0) give_up();
}

void write_stdout(const std::string& text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (!written || std::fflush(stdout) != 0) fail_writing("stdout", std::strerror(errno));
}

bool color_wanted(bool no_color) {
  const char* unwanted = std::getenv("NO_COLOR");  // https://no-color.org: any value but ""
  return !no_color && (unwanted == nullptr || *unwanted == '\0') && isatty(STDOUT_FILENO) == 1;
}

Progress::Progress(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  clear();
}

void Progress::say(const std::string& text, bool milestone) {
  if (quiet_) return;
  if (terminal_) {
    std::fprintf(stderr, "\r\x1b[K%s", text.c_str());
    shown_ = true;
  } else if (milestone) {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
  std::fflush(stderr);
}

void Progress::clear() {
  if (!shown_) return;
  std::fprintf(stderr, "\r\x1b[K");
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace moe::cli
