// Where results and progress go: stdout is data, stderr is progress.
#pragma once

#include <string>

namespace moe::cli {

/// Throws Error(kIo) unless a file can be created or replaced at `path`. Leaves nothing behind.
void check_writable(const std::string& path);
/// Writes the whole text beside `path`, then renames: `path` is either what it was or complete.
/// Throws Error(kIo).
void write_file(const std::string& path, const std::string& text);
/// Writes to stdout. Throws Error(kIo) when it is closed or full.
void write_stdout(const std::string& text);

/// Whether a table on stdout may be coloured.
[[nodiscard]] bool color_wanted(bool no_color);

/// One rewriting line on a terminal, one line per message elsewhere; nothing when quiet.
class Progress {
 public:
  explicit Progress(bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// What is no milestone is only shown on a terminal, where the next message replaces it.
  void say(const std::string& text, bool milestone = true);
  /// Removes the rewriting line, before something else is printed.
  void clear();

 private:
  bool quiet_;
  bool terminal_;
  bool shown_ = false;
};

}  // namespace moe::cli
