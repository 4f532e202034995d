#include "cli/help.h"

#include <algorithm>
#include <string_view>

#include "cli/embedded.h"
#include "core/check.h"

namespace moe::cli {

std::string help_text(const std::string& command) {
  const std::string_view page = embedded_file("docs/cli.md");
  const std::string heading = "\n## `" + command + "`\n";
  const std::size_t at = page.find(heading);
  if (at == std::string_view::npos) {
    fail(ErrorCode::kInternal, "docs/cli.md has no section for {}", command);
  }
  const std::size_t begin = at + heading.size();
  const std::size_t end = std::min(page.find("\n## ", begin), page.size());
  std::string text(page.substr(begin, end - begin));
  // Marks of code blocks and code spans mean nothing on a terminal.
  for (const std::string_view mark : {"```text\n", "```\n"}) {
    for (std::size_t found = text.find(mark); found != std::string::npos; found = text.find(mark)) {
      text.erase(found, mark.size());
    }
  }
  text.erase(std::remove(text.begin(), text.end(), '`'), text.end());
  text.erase(0, text.find_first_not_of('\n'));
  return command + "\n\n" + text + (text.ends_with('\n') ? "" : "\n");
}

}  // namespace moe::cli
